// No token sees a later one: whatever follows token t, the features up to t keep their bits.
#include <gtest/gtest.h>

#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;

constexpr int64_t kLength = 150;  // longer than two chunks of the CPU kernels

Documents Packed() { return RandomDocuments(kLength, {{0, 1, 70, 71}, {0}}, 31, 6); }

Documents WithOtherTokensAfter(Documents documents, int64_t t) {
  for (int64_t i = t + 1; i < kLength; ++i) {
    int32_t& id = documents.ids[static_cast<size_t>(i)];
    id = (id + 7) % 31;
  }
  return documents;
}

int64_t EqualTokens(const Outcome& a, const Outcome& b, int64_t d) {
  for (size_t i = 0; i < a.features.size(); ++i) {
    if (a.features[i] != b.features[i]) return static_cast<int64_t>(i) / d;
  }
  return static_cast<int64_t>(a.features.size()) / d;
}

/// The first sequence's tokens after t change; how many of its first tokens keep their features.
void ExpectNoLeak(const std::vector<std::string>& sets, const MeshSizes& mesh) {
  const v1::TrainingJob job = TinyJob(sets);
  const Passes passes = {.backend = Backend::kCpu, .mesh = mesh, .backward = false};
  const Outcome before = RunModel(job, Packed(), WideValues(3), passes);
  for (int64_t t : {0, 1, 49, 63, 64, 69, 70, 100, 127, 148}) {
    const Outcome after = RunModel(job, WithOtherTokensAfter(Packed(), t), WideValues(3), passes);
    EXPECT_EQ(EqualTokens(before, after, job.spec().model().hidden_size()), t + 1) << sets[0];
  }
}

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.memory_lobe.enabled=true", "model.attention.decay=head"},
      {"model.residual=hyper_link", "model.memory_lobe.enabled=true", "model.moe.label_bias=outer"},
      {"model.attention.kernel=sum_squared", "model.memory_lobe.enabled=true"},
      {"model.attention.kernel=sub_squared", "model.memory_lobe.enabled=true"},
      {"model.attention.kernel=modulated_dot", "model.memory_lobe.enabled=true"},
      {"model.attention.softmax_every=2", "model.memory_lobe.enabled=true"},
  };
  return models;
}

TEST(FutureLeak, NoneOnOneRank) {
  for (const std::vector<std::string>& sets : Models()) ExpectNoLeak(sets, {1, 1, 1});
}

TEST(FutureLeak, NoneAcrossShards) {
  for (const std::vector<std::string>& sets : Models()) ExpectNoLeak(sets, {1, 3, 1});
}

TEST(FutureLeak, ABidirectionalLobeLeaks) {
  const v1::TrainingJob job =
      TinyJob({"model.memory_lobe.enabled=true", "model.memory_lobe.mode=bidirectional",
               "model.memory_lobe.allow_future_leak=true"});
  const Passes passes = {.backend = Backend::kCpu, .backward = false};
  const Outcome before = RunModel(job, Packed(), WideValues(3), passes);
  const Outcome after = RunModel(job, WithOtherTokensAfter(Packed(), 100), WideValues(3), passes);
  EXPECT_EQ(EqualTokens(before, after, job.spec().model().hidden_size()), 71);  // its document
}

TEST(PackedDocuments, AreWhatTheyAreAlone) {
  for (const std::vector<std::string>& sets : Models()) {
    const v1::TrainingJob job = TinyJob(sets);
    const Passes passes = {.backend = Backend::kReference, .backward = false};
    const Documents packed = Packed();
    const Outcome together = RunModel(job, packed, WideValues(3), passes);
    const int64_t d = job.spec().model().hidden_size();
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 70}, {70, 71}, {71, 150}}) {
      const Documents one{
          end - begin, {{0}}, {packed.ids.begin() + begin, packed.ids.begin() + end}};
      const Outcome alone = RunModel(job, one, WideValues(3), passes);
      const std::vector<double> part(together.features.begin() + begin * d,
                                     together.features.begin() + end * d);
      EXPECT_LE(RelativeDistance(part, alone.features), 1e-11) << sets[0] << " " << begin;
    }
  }
}

}  // namespace
}  // namespace ela::trainer
