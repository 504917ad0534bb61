// What a step must not depend on: recomputing, how a batch is cut into micro-batches, and the mesh.
#include "trainer/loop/train_step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/trainer/loop/training_testing.h"

namespace ela::trainer {
namespace {

/// All ways to share 4 ranks, and some with 2 and 3.
const std::vector<MeshSizes> kMeshes = {{4, 1, 1}, {4, 1, 2}, {4, 1, 4}, {2, 2, 1},
                                        {2, 2, 2}, {2, 2, 4}, {1, 4, 1}, {1, 4, 2},
                                        {1, 4, 4}, {1, 2, 2}, {1, 3, 1}, {2, 1, 2}};

std::string NameOf(const MeshSizes& mesh) {
  return std::to_string(mesh.data) + " x " + std::to_string(mesh.sequence) + " x " +
         std::to_string(mesh.expert);
}

/// Gradients of the first step.
Course GradientsOf(const v1::TrainingJob& job, const MeshSizes& mesh = {}) {
  return RunTraining(job, {.mesh = mesh, .update = false});
}

TEST(TrainStep, RecomputingChangesNoBit) {
  for (const char* precision : {"fp32", "bf16"}) {
    const std::string set = std::string("training.precision=") + precision;
    const RunOptions options{.steps = 4, .mesh = {1, 2, 2}};
    const Course kept = RunTraining(TrainingJobWith({set}), options);
    const Course recomputed =
        RunTraining(TrainingJobWith({set, "training.recompute=true"}), options);
    EXPECT_TRUE(SameBits(recomputed, kept)) << precision;
    EXPECT_LT(recomputed.saved, kept.saved);
    EXPECT_EQ(recomputed.expert_counts, kept.expert_counts);  // no token counts twice
    const Course one = RunTraining(
        TrainingJobWith({set, "training.recompute=true", "training.recompute_layers=1"}), options);
    EXPECT_TRUE(SameBits(one, kept)) << precision;
    EXPECT_LT(one.saved, kept.saved);
  }
}

TEST(TrainStep, RecomputingWithMicroBatchesChangesNoBit) {
  const RunOptions options{.steps = 3};
  const Course kept = RunTraining(TrainingJobWith({"training.micro_batch_size=2"}), options);
  const Course recomputed = RunTraining(
      TrainingJobWith({"training.micro_batch_size=2", "training.recompute=true"}), options);
  EXPECT_TRUE(SameBits(recomputed, kept));
}

TEST(TrainStep, EightMicroBatchesOfOneAreOneOfEight) {
  const Course whole = GradientsOf(TrainingJobWith());
  for (const int micro : {1, 2, 3, 5}) {
    const Course cut =
        GradientsOf(TrainingJobWith({"training.micro_batch_size=" + std::to_string(micro)}));
    EXPECT_NEAR(cut.losses[0] / whole.losses[0], 1, 1e-6);
    EXPECT_NEAR(cut.aux_losses[0] / whole.aux_losses[0], 1, 1e-6);
    EXPECT_EQ(cut.expert_counts, whole.expert_counts);
    EXPECT_LE(RelativeDifference(cut.gradients, whole.gradients), 1e-6) << micro;
    EXPECT_LE(LargestRelativeDifference(cut.gradients, whole.gradients), 1e-5) << micro;
  }
}

TEST(TrainStep, SequencesDifferMuchInTheirTargets) {
  MadeUpLoader loader(16, 31);
  int64_t fewest = 16, most = 0;
  for (int64_t k = 0; k < 8; ++k) {
    data::Batch batch;
    ASSERT_TRUE(loader.Fill(k, 1, 0, 16, &batch).ok());
    fewest = std::min(fewest, batch.valid_targets);
    most = std::max(most, batch.valid_targets);
  }
  EXPECT_LE(fewest, 10);
  EXPECT_GE(most, 14);
}

TEST(TrainStep, LossAndGradientsAreThoseOfOneRankOnAnyMesh) {
  const v1::TrainingJob job = TrainingJobWith();
  const Course one = GradientsOf(job);
  for (const MeshSizes& mesh : kMeshes) {
    const Course many = GradientsOf(job, mesh);
    EXPECT_NEAR(many.losses[0] / one.losses[0], 1, 1e-6) << NameOf(mesh);
    EXPECT_NEAR(many.norms[0] / one.norms[0], 1, 1e-6) << NameOf(mesh);
    EXPECT_EQ(many.expert_counts, one.expert_counts);
    EXPECT_LE(LargestRelativeDifference(many.gradients, one.gradients), 1e-5) << NameOf(mesh);
  }
}

/// The balance loss alone: gradients with it less gradients without.
std::map<std::string, std::vector<float>> BalanceGradients(std::vector<std::string> sets,
                                                           const MeshSizes& mesh) {
  sets.push_back("model.moe.aux_coef=10");
  const Course with = GradientsOf(TrainingJobWith(sets), mesh);
  sets.back() = "model.moe.aux_coef=0";
  const Course without = GradientsOf(TrainingJobWith(sets), mesh);
  std::map<std::string, std::vector<float>> difference;
  for (const auto& [name, values] : with.gradients) {
    if (name.find(".router.") == std::string::npos) continue;
    difference[name] = values;
    for (size_t i = 0; i < values.size(); ++i) {
      difference[name][i] -= without.gradients.at(name)[i];
    }
  }
  return difference;
}

TEST(TrainStep, TheBalanceLossAndItsGradientAreTheSameOnAnyMesh) {
  for (const char* micro : {"training.micro_batch_size=2", "training.micro_batch_size=1"}) {
    const double value = GradientsOf(TrainingJobWith()).aux_losses[0];
    const auto gradients = BalanceGradients({}, {1, 1, 1});
    for (const MeshSizes& mesh : {MeshSizes{4, 1, 2}, MeshSizes{1, 4, 4}, MeshSizes{2, 2, 1}}) {
      const Course many = GradientsOf(TrainingJobWith({micro}), mesh);
      EXPECT_NEAR(many.aux_losses[0] / value, 1, 1e-6) << NameOf(mesh);
      EXPECT_LE(LargestRelativeDifference(BalanceGradients({micro}, mesh), gradients), 1e-5)
          << NameOf(mesh);
    }
  }
}

/// aux_coef E sum f P, by hand from a balanced router: f sums to K, P to 1.
TEST(TrainStep, ABalancedRouterCostsItsCoefficientTimesK) {
  const Course course = GradientsOf(TrainingJobWith({"model.moe.aux_coef=0.5"}));
  // Two layers, K = 2; at the start probabilities are near 1/E, which makes any f cost the same.
  EXPECT_NEAR(course.aux_losses[0], 2 * 0.5 * 2, 0.03);
}

TEST(TrainStep, MicroBatchScopeBalancesEachMicroBatchAlone) {
  const std::vector<std::string> sets = {"model.moe.aux_scope=micro_batch",
                                         "training.micro_batch_size=2"};
  const Course one = GradientsOf(TrainingJobWith(sets), {1, 1, 1});
  const Course global = GradientsOf(TrainingJobWith({"training.micro_batch_size=2"}), {1, 1, 1});
  EXPECT_NE(one.aux_losses[0], global.aux_losses[0]);
  EXPECT_EQ(one.expert_counts, global.expert_counts);
  // Shards of the sequence leave the micro-batch what it is.
  const Course sharded = GradientsOf(TrainingJobWith(sets), {1, 4, 2});
  EXPECT_NEAR(sharded.aux_losses[0] / one.aux_losses[0], 1, 1e-6);
}

TEST(TrainStep, ANumberThatIsNotFiniteOnOneRankStopsTheUpdateOfAll) {
  for (int bad = 0; bad < 4; ++bad) {
    RunOptions options{.steps = 2, .mesh = {2, 2, 2}};
    const Course clean = RunTraining(TrainingJobWith(), {.steps = 1, .mesh = {2, 2, 2}});
    options.tamper = [bad](int rank, int64_t step, ParameterStore* store) {
      if (rank != bad || step != 2) return;
      store->flat_grads(ParameterClass::kExpert).as<float>()[3] =
          std::numeric_limits<float>::quiet_NaN();
    };
    const Course course = RunTraining(TrainingJobWith(), options);
    EXPECT_EQ(course.finite, (std::vector<bool>{true, false}));
    EXPECT_TRUE(course.weights == clean.weights) << bad;
  }
}

/// Sums that start in the backward pass give the bits of sums after it, also in buckets that cut
/// layers.
void ExpectOverlapChangesNoBit(const std::vector<std::string>& sets, const MeshSizes& mesh) {
  const v1::TrainingJob job = TrainingJobWith(sets);
  for (const int64_t numel : {job::kBucketNumel, int64_t{500}}) {
    RunOptions options{.steps = 3, .mesh = mesh, .overlap = false, .bucket_numel = numel};
    const Course late = RunTraining(job, options);
    options.overlap = true;
    EXPECT_TRUE(SameBits(RunTraining(job, options), late)) << ::testing::PrintToString(sets);
  }
}

TEST(TrainStep, SummingGradientsInTheBackwardPassChangesNoBit) {
  for (const MeshSizes& mesh : {MeshSizes{1, 1, 1}, MeshSizes{2, 1, 1}, MeshSizes{1, 2, 2},
                                MeshSizes{2, 2, 2}, MeshSizes{4, 1, 4}, MeshSizes{2, 2, 1}}) {
    ExpectOverlapChangesNoBit({}, mesh);
    ExpectOverlapChangesNoBit({"training.precision=bf16", "training.micro_batch_size=1"}, mesh);
  }
  const MeshSizes mesh = {2, 2, 2};
  ExpectOverlapChangesNoBit({"training.recompute=true", "training.micro_batch_size=2"}, mesh);
  ExpectOverlapChangesNoBit({"training.train_only=memory_lobe"}, mesh);
  ExpectOverlapChangesNoBit({"training.objective=masked_token", "model.memory_lobe.enabled=false",
                             "model.attention.decay=none"},
                            mesh);
}

TEST(TrainStep, TrainsTheLobeAloneOverAFrozenBase) {
  const v1::TrainingJob job = TrainingJobWith({"training.train_only=memory_lobe"});
  const RunOptions options{.steps = 3, .mesh = {2, 2, 2}};
  const Course before = RunTraining(job, {.steps = 0, .mesh = options.mesh});
  const Course after = RunTraining(job, options);
  EXPECT_EQ(after.weights.size(), before.weights.size());
  for (const auto& [name, values] : before.weights) {
    const bool lobe = name.find(".lobe.") != std::string::npos;
    EXPECT_EQ(after.weights.at(name) == values, !lobe) << name;
  }
}

}  // namespace
}  // namespace ela::trainer
