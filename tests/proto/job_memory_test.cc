#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "tests/proto/job_testing.h"

namespace ela::job {
namespace {

v1::TrainingJob JobWith(const std::vector<std::string>& assignments) {
  v1::TrainingJob job = SmallJob();
  for (const std::string& assignment : assignments) {
    const absl::Status status = ApplySet(assignment, &job);
    EXPECT_TRUE(status.ok()) << status;
  }
  return Resolve(job, "");
}

MemoryPlan Plan(const std::vector<std::string>& assignments) {
  return PlanMemory(JobWith(assignments));
}

const char* const kOneRank = "parallelism={data: 1, sequence: 1, expert: 1}";

TEST(MemoryPlan, OneRankHoldsTheWholeModelAndBothMoments) {
  const v1::TrainingJob job = Resolve(SmallJob(), "");
  const int64_t parameters = ParameterCount(job.spec().model());
  const MemoryPlan plan = Plan({kOneRank});
  EXPECT_GT(plan.parameters, 4 * parameters);  // with what aligns them
  EXPECT_LT(plan.parameters, 4 * (parameters + parameters / 100));
  EXPECT_EQ(plan.gradients, plan.parameters);
  EXPECT_EQ(plan.optimizer, 8 * parameters);
  EXPECT_EQ(plan.staging, 12 * parameters);
}

TEST(MemoryPlan, MomentsAreShardedOverTheRanks) {
  const MemoryPlan one = Plan({kOneRank});
  const MemoryPlan four = Plan({"parallelism={data: 4, sequence: 1, expert: 1}"});
  EXPECT_LE(4 * four.optimizer - one.optimizer, (1 + 2 + 2) * 4 * 8 * kParameterAlignment);
  EXPECT_GE(4 * four.optimizer, one.optimizer);
}

TEST(MemoryPlan, AFrozenBaseHasNoMoments) {
  const char* const lobe = "model.memory_lobe={enabled: true, norm: true}";
  const int64_t lobes = 2 * (64 + 3 * 64 * 64);  // width 64, 2 layers
  const MemoryPlan one = Plan({kOneRank, lobe, "training.train_only=memory_lobe"});
  EXPECT_EQ(one.optimizer, 8 * lobes);
  const MemoryPlan four = Plan(
      {"parallelism={data: 4, sequence: 1, expert: 1}", lobe, "training.train_only=memory_lobe"});
  EXPECT_GE(4 * four.optimizer, one.optimizer);  // the rank with most of them
  EXPECT_LT(four.optimizer, one.optimizer);
}

TEST(MemoryPlan, ExpertsAreHeldByTheRanksThatShareThem) {
  const MemoryPlan all = Plan({"parallelism={data: 4, sequence: 1, expert: 1}"});
  const MemoryPlan own = Plan({"parallelism={data: 4, sequence: 1, expert: 4}"});
  const int64_t experts = 2 * 4 * 3 * 32 * 64;
  EXPECT_EQ(all.parameters - own.parameters, 4 * experts * 3 / 4);
}

TEST(MemoryPlan, Bf16HalvesTheWeightsAndKeepsMasters) {
  const MemoryPlan fp32 = Plan({kOneRank});
  const MemoryPlan bf16 = Plan({kOneRank, "training.precision=bf16"});
  EXPECT_EQ(2 * bf16.parameters, fp32.parameters);
  EXPECT_EQ(bf16.gradients, fp32.gradients);
  EXPECT_EQ(bf16.optimizer - fp32.optimizer, fp32.parameters);
}

TEST(MemoryPlan, ActivationsShrinkWithShardsMicroBatchesAndRecompute) {
  const MemoryPlan whole = Plan({kOneRank});
  EXPECT_LT(Plan({"parallelism={data: 1, sequence: 4, expert: 1}"}).activations,
            whole.activations / 2);
  EXPECT_LT(Plan({kOneRank, "training.micro_batch_size=1"}).activations, whole.activations / 7);
  EXPECT_LT(Plan({kOneRank, "training.recompute=true"}).activations, whole.activations);
}

TEST(MemoryPlan, AsFewLayersAreRecomputedAsFit) {
  const std::vector<std::string> sets = {kOneRank, "model.num_layers=6",
                                         "model.attention.softmax_every=3"};
  const auto job = [&](const std::string& layers) {
    std::vector<std::string> more = sets;
    more.insert(more.end(), {"training.recompute=true", layers});
    return JobWith(more);
  };
  const auto taken = [](const v1::TrainingJob& job) {
    return PlanMemory(job, /*on_device=*/true).taken(/*on_device=*/true);
  };
  const v1::TrainingJob all = job("training.steps=1");
  EXPECT_EQ(RecomputedLayers(all.spec()), 6);
  EXPECT_EQ(taken(all), taken(job("training.recompute_layers=9")));
  int64_t more = taken(JobWith(sets));
  EXPECT_EQ(FewestRecomputedLayers(all, true, more), 0);
  for (int64_t n = 1; n <= 5; ++n) {
    const int64_t bytes = taken(job("training.recompute_layers=" + std::to_string(n)));
    EXPECT_LT(bytes, more);
    EXPECT_EQ(FewestRecomputedLayers(all, true, bytes), n);
    EXPECT_EQ(FewestRecomputedLayers(all, true, more - 1), n);
    more = bytes;
  }
  EXPECT_EQ(FewestRecomputedLayers(all, true, 0), 6);
}

TEST(MemoryPlan, TheLargestMicroBatchThatFitsIsFound) {
  const v1::TrainingJob job = JobWith({kOneRank});
  const int64_t whole = job.spec().training().micro_batch_size();
  ASSERT_EQ(whole, 8);
  for (const bool on_device : {false, true}) {
    for (const int64_t size : {whole / 4, whole / 2, whole}) {
      const int64_t bytes =
          PlanMemory(JobWith({kOneRank, "training.micro_batch_size=" + std::to_string(size)}),
                     on_device)
              .taken(on_device);
      EXPECT_EQ(LargestMicroBatch(job, on_device, bytes), size);
      EXPECT_EQ(LargestMicroBatch(job, on_device, bytes - 1), size / 2);  // 3 makes no batch of 8
    }
    EXPECT_EQ(LargestMicroBatch(job, on_device, int64_t{1} << 50), whole);
  }
}

// Documents of a token each would need as many states.
TEST(MemoryPlan, DocumentsSeenBothWaysTakeUpTo64MiBOfStatesOnACard) {
  const auto workspace = [](const std::string& document_mask) {
    const v1::TrainingJob job = JobWith(
        {kOneRank, "training.objective=masked_token", "training.precision=bf16",
         "training.micro_batch_size=1", "model.hidden_size=2048", "model.num_attention_heads=16",
         "model.attention.decay=none", "model.moe={num_experts: 1, top_k: 1, label_bias: none}",
         "data.seq_len=262144", "data.document_mask=" + document_mask});
    return PlanMemory(job, /*on_device=*/true).workspace;
  };
  const int64_t state = 16 * (128 + 1) * (128 + 1) * 4, spans = 64 * 262144;
  const int64_t more = workspace("true") - spans - (workspace("false") - 8 * state);
  EXPECT_LE(more, 64 << 20);
  EXPECT_GE(more, (64 << 20) - 2 * state);
}

TEST(MemoryPlan, ASynchronousCheckpointStagesNothing) {
  EXPECT_EQ(Plan({"checkpoint.async=false"}).staging, 0);
}

}  // namespace
}  // namespace ela::job
