#include "proto/job/job_file.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "proto/job/schema.h"
#include "proto/job/text.h"
#include "tests/proto/job_testing.h"

namespace ela::job {
namespace {

using google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  const auto job = ParseJob(text, "job.yaml");
  return job.ok() ? "no error" : std::string(job.status().message());
}

TEST(ParseJob, ReadsEveryKindOfValue) {
  const auto job = ParseJob(kSmallJob, "job.yaml");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->metadata().labels().at("team"), "42");
  EXPECT_EQ(job->spec().model().hidden_size(), 64);
  EXPECT_EQ(job->spec().model().attention().decay(), v1::DECAY_HEAD);
  EXPECT_EQ(job->spec().data().train(1).weight(), 0.5);
  EXPECT_FALSE(job->spec().data().document_mask());
  EXPECT_THAT(job->spec().optimizer().betas(), ::testing::ElementsAre(0.9, 0.999));
}

TEST(ParseJob, ReadsJson) {
  const auto job =
      ParseJob(R"({"metadata": {"name": "a"}, "spec": {"model": {"num_layers": 2}}})", "job.json");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->spec().model().num_layers(), 2);
}

TEST(ParseJob, NamesLinePathAndNearestKey) {
  EXPECT_EQ(ErrorOf("spec:\n  model:\n    hiden_size: 8\n"),
            "job.yaml:3: spec.model.hiden_size: unknown key; did you mean hidden_size?");
  EXPECT_EQ(ErrorOf("spec:\n  model:\n    heads: 8\n"),
            "job.yaml:3: spec.model.heads: unknown key; did you mean num_attention_heads?");
  EXPECT_THAT(ErrorOf("spec: {tokenizer: {zzz: 1}}"), HasSubstr("unknown key; known here: path"));
}

TEST(ParseJob, RefusesWrongTypes) {
  EXPECT_EQ(ErrorOf("spec: {model: {num_layers: many}}"),
            "job.yaml:1: spec.model.num_layers: expected an integer, got \"many\"");
  EXPECT_THAT(ErrorOf("spec: {model: {num_layers: \"4\"}}"), HasSubstr("expected an integer"));
  EXPECT_THAT(ErrorOf("spec: {model: {num_layers: 1.5}}"), HasSubstr("expected an integer"));
  EXPECT_THAT(ErrorOf("spec: {model: {num_layers: [1]}}"), HasSubstr("got a list"));
  EXPECT_THAT(ErrorOf("spec: {model: 4}"), HasSubstr("expected a mapping"));
  EXPECT_THAT(ErrorOf("spec: {optimizer: {betas: 0.9}}"), HasSubstr("expected a list"));
  EXPECT_THAT(ErrorOf("spec: {data: {document_mask: yes}}"), HasSubstr("expected true or false"));
  EXPECT_THAT(ErrorOf("spec: {optimizer: {lr: .inf}}"), HasSubstr("expected a number"));
  EXPECT_THAT(ErrorOf("spec: {optimizer: {lr: }}"), HasSubstr("has no value"));
}

TEST(ParseJob, RefusesUnknownEnumValueWithTheKnownOnes) {
  EXPECT_EQ(ErrorOf("spec: {model: {attention: {kernel: hadamard}}}"),
            "job.yaml:1: spec.model.attention.kernel: \"hadamard\" is not one of hadamard_exp, "
            "sum_squared, sub_squared, modulated_dot; did you mean hadamard_exp?");
  EXPECT_THAT(ErrorOf("spec: {model: {attention: {kernel: unspecified}}}"),
              HasSubstr("not one of"));
}

TEST(ParseJob, RefusesNumbersOutOfBounds) {
  EXPECT_EQ(ErrorOf("spec: {model: {num_layers: 0}}"),
            "job.yaml:1: spec.model.num_layers: 0 is below the smallest value, 1");
  EXPECT_THAT(ErrorOf("spec: {optimizer: {lr: 101}}"), HasSubstr("above the largest value, 100"));
}

TEST(ParseJob, RefusesAKeyGivenTwice) {
  EXPECT_EQ(ErrorOf("spec:\n  model:\n    num_layers: 1\n    num_layers: 2\n"),
            "job.yaml:4: num_layers: given twice; first at line 3");
}

TEST(ParseJob, RefusesWhatOnlyGeneralYamlHas) {
  EXPECT_THAT(ErrorOf("spec: &a {}\n"), HasSubstr("anchors"));
  EXPECT_THAT(ErrorOf("metadata: {name: &a x}\nkind: *a\n"), HasSubstr("anchors"));
  EXPECT_THAT(ErrorOf("kind: !!str x\n"), HasSubstr("tags"));
  EXPECT_THAT(ErrorOf("a: 1\n---\nb: 1\n"), HasSubstr("more than one document"));
  EXPECT_THAT(ErrorOf("[a]: 1\n"), HasSubstr("a key must be a plain word"));
  EXPECT_THAT(ErrorOf("kind: \"a\\nb\"\n"), HasSubstr("control character"));
  EXPECT_EQ(ErrorOf("kind: \"\\\n").find('\n'), std::string::npos);
  EXPECT_THAT(ErrorOf("kind: a\nspec: \"\xff\"\n"), HasSubstr("job.yaml:2: not valid UTF-8"));
}

TEST(ParseJob, LimitsSizeAndDepth) {
  EXPECT_THAT(ErrorOf(std::string(2'000'000, ' ')), HasSubstr("at most 1048576"));
  EXPECT_THAT(ErrorOf("a: " + std::string(40, '[') + std::string(40, ']')),
              HasSubstr("levels deep"));
  EXPECT_NE(ErrorOf("a: " + std::string(100'000, '[')), "no error");
  EXPECT_NE(ErrorOf("a: " + std::string(100'000, '{')), "no error");
}

TEST(ParseJob, EmptyFileSaysHowAJobStarts) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("is empty"));
  EXPECT_THAT(ErrorOf("# only a comment\n"), HasSubstr("is empty"));
}

TEST(LoadJobFile, SaysThatThereIsNoFile) {
  EXPECT_EQ(LoadJobFile("/nowhere/job.yaml").status(),
            absl::NotFoundError("/nowhere/job.yaml: no such file"));
  EXPECT_FALSE(LoadJobFile("/tmp").ok());
}

TEST(Numbers, IntegersAreTakenOnlyIfExact) {
  EXPECT_EQ(ParseInteger("1_000"), 1000);
  EXPECT_EQ(ParseInteger("1e6"), 1'000'000);
  EXPECT_EQ(ParseInteger("-3"), -3);
  EXPECT_EQ(ParseInteger("1.5e3"), 1500);
  EXPECT_EQ(ParseInteger("9223372036854775807"), INT64_MAX);
  for (const char* bad : {"", "1.5", "1e30", "_1", "1_", "1__0", "0x10", "1 ", "nan", "--1", "e"}) {
    EXPECT_EQ(ParseInteger(bad), std::nullopt) << bad;
  }
}

TEST(Numbers, TextOfANumberReadsBackExactly) {
  for (double value : {0.1, 1e-8, 10000.0, 1e300, -2.5, 1.0 / 3, 123456789012.0}) {
    EXPECT_EQ(ParseNumber(FormatDouble(value)), value) << FormatDouble(value);
  }
}

TEST(Durations, AreReadInEveryUnit) {
  EXPECT_EQ(*ParseDurationMs("250ms"), 250);
  EXPECT_EQ(*ParseDurationMs("90s"), 90'000);
  EXPECT_EQ(*ParseDurationMs("1h30m"), 5'400'000);
  EXPECT_EQ(*ParseDurationMs("2d"), 172'800'000);
  for (const char* bad : {"", "10", "s", "-1s", "1x", "1.5h", "99999999999999999999s", "1 s"}) {
    EXPECT_FALSE(ParseDurationMs(bad).ok()) << bad;
  }
}

TEST(NearestWord, IsCloseOrNone) {
  EXPECT_EQ(Nearest("sumbit", {"list", "submit", "get"}), "submit");
  EXPECT_EQ(Nearest("xyzzy", {"list", "submit", "get"}), "");
}

TEST(ApplySet, SetsScalarsListsElementsAndLabels) {
  v1::TrainingJob job = SmallJob();
  for (const char* assignment :
       {"model.num_layers=7", "spec.optimizer.lr=2e-3", "metadata.name=b",
        "optimizer.betas=[0.8, 0.9]", "data.train[0].path=other", "data.train[2].path=third",
        "optimizer.betas[1]=0.95", "metadata.labels.team=new", "metadata.labels.owner=me",
        "model.moe={intermediate_size: 16}"}) {
    EXPECT_TRUE(ApplySet(assignment, &job).ok()) << assignment << ApplySet(assignment, &job);
  }
  EXPECT_EQ(job.spec().model().num_layers(), 7);
  EXPECT_EQ(job.spec().data().train(0).path(), "other");
  EXPECT_EQ(job.spec().data().train(0).weight(), SmallJob().spec().data().train(0).weight());
  EXPECT_EQ(job.spec().data().train_size(), 3);
  EXPECT_THAT(job.spec().optimizer().betas(), ::testing::ElementsAre(0.8, 0.95));
  EXPECT_EQ(job.metadata().labels().at("team"), "new");
  EXPECT_EQ(job.metadata().labels().size(), 2u);
  EXPECT_FALSE(job.spec().model().moe().has_num_experts());
}

TEST(ApplySet, RefusesAndLeavesTheJobAlone) {
  v1::TrainingJob job = SmallJob();
  const std::string before = ToYaml(job);
  for (const char* assignment :
       {"", "=1", "model.num_layers", "model.num_layer=1", "model..a=1", "data.train[9].path=x",
        "data.train[x].path=x", "data.train.path=x", "model.num_layers.x=1", "model[0]=1",
        "model.num_layers=", "a[0=1", "metadata.labels.a.b=1", "optimizer.betas[0].x=1"}) {
    EXPECT_FALSE(ApplySet(assignment, &job).ok()) << assignment;
  }
  EXPECT_EQ(ToYaml(job), before);
  EXPECT_EQ(ApplySet("model.hiden_size=3", &job).message(),
            "--set model.hiden_size=3: spec.model.hiden_size: unknown key; did you mean "
            "hidden_size?");
}

TEST(RoundTrip, YamlAndJsonReadBackToTheSameJob) {
  for (const v1::TrainingJob& job : {SmallJob(), Resolve(SmallJob(), "/data")}) {
    const auto from_yaml = ParseJob(ToYaml(job), "yaml");
    ASSERT_TRUE(from_yaml.ok()) << from_yaml.status() << "\n" << ToYaml(job);
    EXPECT_TRUE(MessageDifferencer::Equals(*from_yaml, job)) << ToYaml(job);
    const auto from_json = ParseJob(ToJson(job), "json");
    ASSERT_TRUE(from_json.ok()) << from_json.status();
    EXPECT_TRUE(MessageDifferencer::Equals(*from_json, job)) << ToJson(job);
  }
}

TEST(RoundTrip, AwkwardStringsSurvive) {
  for (const char* text :
       {"",     " ",    "a: b",  "#x",     "- a", "true", "null", "~",    "1e5", "a\"b",
        "a\\b", "'",    "é日本", "{",      "[",   "*x",   "&x",   "!x",   "%",   "@",
        "`",    "a #b", "x:",    "/a b/c", "...", "---",  "a,b",  "0x1F", "=",   "<<"}) {
    v1::TrainingJob job = SmallJob();
    job.mutable_spec()->mutable_tokenizer()->set_path(text);
    (*job.mutable_metadata()->mutable_labels())[text] = text;
    const auto yaml = ParseJob(ToYaml(job), "yaml");
    ASSERT_TRUE(yaml.ok()) << yaml.status() << ToYaml(job);
    EXPECT_TRUE(MessageDifferencer::Equals(*yaml, job)) << text << "\n" << ToYaml(job);
    const auto json = ParseJob(ToJson(job), "json");
    ASSERT_TRUE(json.ok()) << json.status() << ToJson(job);
    EXPECT_TRUE(MessageDifferencer::Equals(*json, job)) << ToJson(job);
  }
}

TEST(RoundTrip, ModelSectionIsItsOwnJson) {
  const v1::ModelSpec model = Resolve(SmallJob(), "").spec().model();
  const auto back = ModelFromJson(ModelToJson(model), "config.json");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(MessageDifferencer::Equals(*back, model));
  EXPECT_THAT(ModelToJson(model), HasSubstr("\"kernel\": \"hadamard_exp\""));
}

}  // namespace
}  // namespace ela::job
