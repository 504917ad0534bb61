// Random damage to a good job file: whatever comes in, the answer is a job or one line, never a
// crash. Runs under the sanitizer presets too; the generator is seeded, so a failure repeats.

#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "tests/proto/job_testing.h"

namespace ela::job {
namespace {

using google::protobuf::util::MessageDifferencer;

std::string Damage(std::string text, std::mt19937* random) {
  static constexpr std::string_view kPieces[] = {":",           "- ",      "{",
                                                 "}",           "[",       "]",
                                                 "\n",          "  ",      "\"",
                                                 "'",           "#",       "&a",
                                                 "*a",          "!t",      "|\n",
                                                 ">\n",         "?",       "%",
                                                 "---\n",       "...",     "\t",
                                                 "\xff",        "\0",      "null",
                                                 "1e999",       "-1",      "9223372036854775807",
                                                 "<<",          "\\u0000", "\\ud800",
                                                 "true",        ",",       "\r",
                                                 "\xef\xbb\xbf"};
  const int edits = 1 + static_cast<int>((*random)() % 4);
  for (int i = 0; i < edits; ++i) {
    const size_t at = (*random)() % (text.size() + 1);
    switch ((*random)() % 4) {
      case 0:
        text.insert(at, kPieces[(*random)() % std::size(kPieces)]);
        break;
      case 1:
        text.erase(at, 1 + (*random)() % 8);
        break;
      case 2:
        if (at < text.size()) text[at] = static_cast<char>((*random)());
        break;
      default:
        text.insert(at, text.substr((*random)() % text.size(), (*random)() % 40));
        break;
    }
    if (text.empty()) text.push_back('a');
  }
  return text;
}

void CheckOne(const std::string& text) {
  const auto job = ParseJob(text, "fuzz.yaml");
  if (!job.ok()) {
    EXPECT_EQ(job.status().message().find('\n'), absl::string_view::npos) << job.status();
    return;
  }
  const v1::TrainingJob resolved = Resolve(*job, "/home/ada");
  if (Validate(resolved).empty()) PlanMemory(resolved);
  const auto again = ParseJob(ToYaml(*job), "again.yaml");
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
  EXPECT_TRUE(MessageDifferencer::Equals(*again, *job)) << text;
}

TEST(JobFuzz, DamagedYamlIsAJobOrOneLine) {
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) CheckOne(Damage(std::string(kSmallJob), &random));
}

TEST(JobFuzz, DamagedJsonIsAJobOrOneLine) {
  std::mt19937 random(8);
  const std::string json = ToJson(SmallJob());
  for (int i = 0; i < 3000; ++i) CheckOne(Damage(json, &random));
}

TEST(JobFuzz, DamagedAssignmentsAreAppliedOrRefused) {
  std::mt19937 random(9);
  const v1::TrainingJob job = SmallJob();
  for (int i = 0; i < 3000; ++i) {
    v1::TrainingJob changed = job;
    const std::string text = Damage("data.train[0].path=[{path: a, weight: 1}]", &random);
    if (ApplySet(text, &changed).ok()) continue;
    ASSERT_TRUE(MessageDifferencer::Equals(changed, job)) << text;
  }
}

}  // namespace
}  // namespace ela::job
