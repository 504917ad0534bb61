// Masked tokens (model.md 3): a pure function of where a token is, whatever the mesh.
#include "trainer/loop/batch_stream.h"

#include <gtest/gtest.h>

#include "tests/trainer/loop/training_testing.h"

namespace ela::trainer {
namespace {

data::Batch Counting(int64_t sequences, int64_t length, int32_t first = 100) {
  data::Batch batch;
  batch.sequences = sequences;
  batch.length = length;
  for (int64_t i = 0; i < sequences * length; ++i) {
    batch.ids.push_back(first + static_cast<int32_t>(i));
    batch.targets.push_back(-7);
  }
  return batch;
}

TEST(MaskTokens, HidesOneInSevenAndAsksForThoseAlone) {
  data::Batch batch = Counting(20, 1000);
  MaskTokens(/*seed=*/1, /*step=*/1, /*first_sample=*/0, /*token_begin=*/0, &batch);
  int64_t masked = 0;
  for (int32_t i = 0; i < 20000; ++i) {
    const size_t at = static_cast<size_t>(i);
    const bool hidden = batch.ids[at] == kMaskId;
    masked += hidden;
    EXPECT_EQ(batch.ids[at], hidden ? kMaskId : 100 + i);
    EXPECT_EQ(batch.targets[at], hidden ? 100 + i : -1);
  }
  EXPECT_EQ(batch.valid_targets, masked);
  EXPECT_NEAR(static_cast<double>(masked) / 20000, kMaskedShare, 0.01);  // 4 deviations
}

TEST(MaskTokens, DependsOnSeedStepSampleAndPosition) {
  const auto masked = [](uint64_t seed, int64_t step, int64_t sample, int64_t begin) {
    data::Batch batch = Counting(1, 200);
    MaskTokens(seed, step, sample, begin, &batch);
    return batch.targets;
  };
  EXPECT_EQ(masked(1, 2, 3, 4), masked(1, 2, 3, 4));
  EXPECT_NE(masked(1, 2, 3, 4), masked(2, 2, 3, 4));
  EXPECT_NE(masked(1, 2, 3, 4), masked(1, 3, 3, 4));
  EXPECT_NE(masked(1, 2, 3, 4), masked(1, 2, 4, 4));
  EXPECT_NE(masked(1, 2, 3, 4), masked(1, 2, 3, 5));
}

TEST(MaskTokens, MasksTheSameTokensOnAnyMeshAndInAnyMicroBatches) {
  const v1::TrainingJob job = TrainingJobWith(
      {"training.objective=masked_token", "model.attention.decay=none", "data.seq_len=64"});
  const Course one = RunTraining(job, {.update = false, .logprobs = true});
  for (const MeshSizes& mesh : {MeshSizes{4, 1, 2}, MeshSizes{1, 3, 1}, MeshSizes{2, 2, 4}}) {
    const Course many = RunTraining(job, {.mesh = mesh, .update = false, .logprobs = true});
    EXPECT_EQ(many.valid_targets, one.valid_targets);
    EXPECT_LE(LargestDifference(many.logprobs, one.logprobs), 4e-6);
    EXPECT_NEAR(many.losses[0] / one.losses[0], 1, 1e-6);
    EXPECT_LE(LargestRelativeDifference(many.gradients, one.gradients), 1e-5);
  }
}

TEST(MaskTokens, AModelLearnsToFillThemIn) {
  const v1::TrainingJob job =
      TrainingJobWith({"training.objective=masked_token", "model.attention.decay=none",
                       "optimizer.lr=0.01", "training.steps=120", "model.hidden_size=32",
                       "model.memory_lobe.mode=bidirectional", "data.seq_len=32"});
  const Course course = RunTraining(job, {.steps = 120, .mesh = {1, 2, 2}, .period = 8});
  EXPECT_LT(course.losses.back(), 0.6 * course.losses.front());
}

}  // namespace
}  // namespace ela::trainer
