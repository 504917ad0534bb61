#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/job/schema.h"
#include "tests/proto/job_testing.h"

namespace ela::job {
namespace {

using google::protobuf::util::MessageDifferencer;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::TrainingJob With(std::initializer_list<const char*> assignments) {
  v1::TrainingJob job = SmallJob();
  for (const char* assignment : assignments) {
    const absl::Status status = ApplySet(assignment, &job);
    EXPECT_TRUE(status.ok()) << status;
  }
  return Resolve(job, "/home/ada");
}

std::vector<std::string> ProblemsWith(std::initializer_list<const char*> assignments) {
  return Validate(With(assignments));
}

int64_t PresetCount(std::initializer_list<const char*> assignments) {
  v1::TrainingJob job;
  for (const char* assignment : assignments) {
    EXPECT_TRUE(ApplySet(assignment, &job).ok()) << assignment;
  }
  return ParameterCount(Resolve(job, "").spec().model());
}

TEST(Resolve, PaperPresetHasThePublishedCounts) {
  EXPECT_EQ(PresetCount({"model.preset=paper"}), 5'837'840);
  EXPECT_EQ(PresetCount({"model.preset=paper", "model.memory_lobe.enabled=true"}), 6'624'272);
  EXPECT_EQ(PresetCount({"model.preset=paper", "model.residual=pre_norm"}), 5'838'864);
}

TEST(Resolve, RecommendedPresetFillsTheStackAndNoSizes) {
  v1::TrainingJob job;
  ASSERT_TRUE(ApplySet("model.preset=recommended", &job).ok());
  const v1::ModelSpec model = Resolve(job, "").spec().model();
  EXPECT_EQ(model.attention().decay(), v1::DECAY_HEAD);
  EXPECT_EQ(model.attention().softmax_every(), 3);
  EXPECT_EQ(model.residual(), v1::RESIDUAL_PRE_NORM);
  EXPECT_EQ(model.moe().label_bias(), v1::LABEL_BIAS_INNER);
  EXPECT_TRUE(model.final_norm());
  EXPECT_FALSE(model.memory_lobe().enabled());
  EXPECT_FALSE(model.has_hidden_size());
}

TEST(Resolve, AKeyThatTheJobSetsBeatsThePreset) {
  v1::TrainingJob job;
  ASSERT_TRUE(ApplySet("model={preset: paper, num_layers: 2, final_norm: true}", &job).ok());
  const v1::ModelSpec model = Resolve(job, "").spec().model();
  EXPECT_EQ(model.num_layers(), 2);
  EXPECT_TRUE(model.final_norm());
  EXPECT_EQ(model.hidden_size(), 256);
}

TEST(Resolve, EveryDefaultOfTheSchemaIsLegal) {
  const v1::TrainingJob job = With({});
  EXPECT_THAT(Validate(job), IsEmpty());
  EXPECT_THAT(job.spec().training().seed(), 1234);
  EXPECT_EQ(job.spec().optimizer().eps(), 1e-8);
  v1::TrainingJob empty;
  EXPECT_THAT(Resolve(empty, "").spec().optimizer().betas(), ElementsAre(0.9, 0.95));
}

TEST(Resolve, IsIdempotent) {
  for (const char* preset : {"paper", "recommended"}) {
    v1::TrainingJob job = SmallJob();
    ASSERT_TRUE(ApplySet(std::string("model.preset=") + preset, &job).ok());
    const v1::TrainingJob once = Resolve(job, "/home/ada");
    EXPECT_TRUE(MessageDifferencer::Equals(once, Resolve(once, "/elsewhere")));
  }
}

TEST(Resolve, DerivesRanksAndMicroBatch) {
  const v1::TrainingJob job = With({});
  EXPECT_EQ(job.spec().resources().ranks_per_node(), 4);
  EXPECT_EQ(job.spec().training().micro_batch_size(), 4);
}

TEST(Resolve, MakesRelativePathsAbsolute) {
  const v1::TrainingJob job = With({"data.validation=../v", "checkpoint.path=ckpt"});
  EXPECT_EQ(job.spec().data().train(0).path(), "/home/ada/data/a");
  EXPECT_EQ(job.spec().data().train(1).path(), "/data/b");
  EXPECT_EQ(job.spec().data().validation(), "/home/v");
  EXPECT_EQ(job.spec().checkpoint().path(), "/home/ada/ckpt");
  EXPECT_FALSE(job.spec().training().has_init_from());
}

TEST(Validate, NamesEveryMissingKey) {
  const std::vector<std::string> problems = Validate(Resolve(v1::TrainingJob(), ""));
  for (const char* key :
       {"metadata.name", "spec.model.vocab_size", "spec.model.hidden_size", "spec.model.num_layers",
        "spec.model.num_attention_heads", "spec.model.moe.intermediate_size", "spec.data.train",
        "spec.data.seq_len", "spec.training.steps", "spec.training.global_batch_size"}) {
    EXPECT_THAT(problems, Contains(::testing::StartsWith(std::string(key) + ": not set")));
  }
  EXPECT_EQ(problems.size(), 10u);
}

TEST(Validate, AnUnresolvedJobIsReportedAndNeverDivides) {
  EXPECT_THAT(Validate(v1::TrainingJob()), Contains(HasSubstr("was not resolved")));
}

TEST(Validate, ChecksMessagesThatNoParserSaw) {
  v1::TrainingJob job = With({});
  job.mutable_spec()->mutable_model()->set_num_layers(-1);
  job.mutable_spec()->mutable_optimizer()->set_lr(std::numeric_limits<double>::quiet_NaN());
  job.mutable_spec()->mutable_training()->set_precision(static_cast<v1::Precision>(99));
  job.mutable_spec()->mutable_tokenizer()->set_path("a\nb");
  EXPECT_THAT(Validate(job), ElementsAre(HasSubstr("num_layers: -1 is below"),
                                         HasSubstr("tokenizer.path: holds a control character"),
                                         HasSubstr("precision: unknown value"),
                                         HasSubstr("optimizer.lr: must be a finite number")));
}

struct BadJob {
  std::vector<const char*> assignments;
  const char* expected;
};
void PrintTo(const BadJob& bad, std::ostream* out) { *out << bad.assignments.back(); }

class ValidateRefuses : public ::testing::TestWithParam<BadJob> {};

TEST_P(ValidateRefuses, WithOneLineThatSaysWhy) {
  v1::TrainingJob job = SmallJob();
  for (const char* assignment : GetParam().assignments) {
    const absl::Status status = ApplySet(assignment, &job);
    ASSERT_TRUE(status.ok()) << status;
  }
  const std::vector<std::string> problems = Validate(Resolve(job, ""));
  ASSERT_EQ(problems.size(), 1u) << ::testing::PrintToString(problems);
  EXPECT_THAT(problems[0], HasSubstr(GetParam().expected));
  EXPECT_EQ(problems[0].find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    Jobs, ValidateRefuses,
    ::testing::Values(
        BadJob{{"model.num_attention_heads=5"}, "5 does not divide hidden_size 64"},
        BadJob{{"model.num_attention_heads=16"}, "head dim of 4; it must be a multiple of 8"},
        BadJob{{"model.hidden_size=1040"}, "head dim of 260"},
        BadJob{{"model.moe.top_k=5"}, "top_k: 5 is more than num_experts 4"},
        BadJob{{"model.memory_lobe={enabled: true, num_heads: 3}"}, "memory_lobe.num_heads: 3"},
        BadJob{{"model.memory_lobe={enabled: true, mode: bidirectional}"},
               "lets every position see the tokens it must predict"},
        BadJob{{"training.objective=masked_token"}, "decay: head is causal only"},
        BadJob{{"resources.ranks_per_node=3"}, "gives 3 ranks, but data 2 x sequence 2 needs 4"},
        BadJob{{"parallelism.expert=3", "model.moe.num_experts=6"}, "expert: 3 does not divide"},
        BadJob{{"model.moe.num_experts=6"}, "4 does not divide num_experts 6"},
        BadJob{{"training.global_batch_size=9"}, "9 is not a multiple of parallelism.data 2"},
        BadJob{{"training.micro_batch_size=3"}, "x micro_batch_size 3"},
        BadJob{{"training.eval_every=5"}, "needs data.validation"},
        BadJob{{"training.train_only=memory_lobe"}, "memory_lobe.enabled: true"},
        BadJob{{"optimizer.betas=[0.9]"}, "holds 1 numbers"},
        BadJob{{"optimizer.betas=[0.9, 1]"}, "must be below 1"},
        BadJob{{"optimizer.eps=0"}, "must be above 0"},
        BadJob{{"lr_scheduler.min_lr=0.5"}, "0.5 is above optimizer.lr 0.001"},
        BadJob{{"lr_scheduler.warmup_steps=101"}, "101 is more than training.steps 100"},
        BadJob{{"metadata.name=Demo"}, "\"Demo\" must be 1 to 40 of a-z"},
        BadJob{{"resources.queue=mine"}, "resources.queue: there is one queue, default"},
        BadJob{{"resources.time_limit=soon"}, "\"soon\" is not a duration"},
        BadJob{{"resources.time_limit=0s"}, "longer than 0"},
        BadJob{{"restart.backoff=1"}, "is not a duration"},
        BadJob{{"apiVersion=ela/v2"}, "\"ela/v2\" is not known"},
        BadJob{{"kind=Job"}, "\"Job\" is not known"},
        BadJob{{"data.train[0].weight=0", "data.train[1].weight=0"}, "every weight is 0"},
        BadJob{{"data.seq_len=1e9", "training.global_batch_size=1e6", "model.num_layers=1000"},
               "more than 400 PB"},
        BadJob{{"resources.launcher=slurm"}, "slurm is not supported by this build yet"}));

TEST(Validate, LeakIsPermittedWhenAskedForByName) {
  EXPECT_THAT(ProblemsWith({"model.memory_lobe={enabled: true, mode: bidirectional, "
                            "allow_future_leak: true}"}),
              IsEmpty());
}

TEST(Validate, MaskedTokenMayUseABidirectionalLobe) {
  EXPECT_THAT(ProblemsWith({"training.objective=masked_token", "model.attention.decay=none",
                            "model.memory_lobe={enabled: true, mode: bidirectional}"}),
              IsEmpty());
}

TEST(Validate, NodesThatDoNotDivideTheWorldAreReported) {
  EXPECT_THAT(ProblemsWith({"resources.nodes=3"}),
              Contains(HasSubstr("3 does not divide data x sequence = 4")));
}

}  // namespace
}  // namespace ela::job
