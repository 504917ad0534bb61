// What an optimizer holds on each rank: what the memory plan says, and no more where more ranks
// share it.
#include <algorithm>
#include <mutex>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "tests/trainer/optim/optimizer_testing.h"

namespace ela::trainer {
namespace {

using kernels::DType;

v1::TrainingJob JobOf(const MeshSizes& sizes, DType dtype, bool lobe_only) {
  v1::TrainingJob job;
  *job.mutable_spec()->mutable_model() = SmallModel();
  job.mutable_spec()->mutable_parallelism()->set_data(sizes.data);
  job.mutable_spec()->mutable_parallelism()->set_sequence(sizes.sequence);
  job.mutable_spec()->mutable_parallelism()->set_expert(sizes.expert);
  v1::TrainingSpec* training = job.mutable_spec()->mutable_training();
  if (dtype == DType::kBf16) training->set_precision(v1::PRECISION_BF16);
  if (lobe_only) training->set_train_only(v1::TRAIN_ONLY_MEMORY_LOBE);
  job.mutable_spec()->mutable_checkpoint()->set_async(true);
  return job::Resolve(job, "");
}

// To the byte: on the rank that holds most, which the plan is of.
TEST(Zero1Optimizer, HoldsWhatThePlanSays) {
  for (const bool lobe_only : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const MeshSizes& sizes : ManyMeshes()) {
        std::mutex mutex;
        job::MemoryPlan most;
        OnMesh(sizes, {.dtype = dtype, .lobe_only = lobe_only}, {}, [&](OptimizerRank& rank) {
          OptimizerSnapshot snapshot;
          rank.optimizer->Snapshot(&snapshot);
          job::MemoryPlan taken;
          taken.gradients = rank.optimizer->received_bytes();
          for (const ParameterClass cls : kParameterClasses) {
            const int64_t numel = rank.store->flat_params(cls).numel();
            taken.parameters += numel * static_cast<int64_t>(SizeOf(dtype));
            taken.gradients += numel * 4;
          }
          const std::lock_guard<std::mutex> lock(mutex);
          most.parameters = std::max(most.parameters, taken.parameters);
          most.gradients = std::max(most.gradients, taken.gradients);
          most.optimizer = std::max(most.optimizer, rank.optimizer->state_bytes());
          most.staging =
              std::max(most.staging, static_cast<int64_t>(snapshot.memory.size() * sizeof(float)));
          return absl::OkStatus();
        });
        SCOPED_TRACE(::testing::Message() << sizes.data << " x " << sizes.sequence << " x "
                                          << sizes.expert << (lobe_only ? ", lobe" : ""));
        const job::MemoryPlan plan = job::PlanMemory(JobOf(sizes, dtype, lobe_only));
        EXPECT_EQ(most.parameters, plan.parameters);
        EXPECT_EQ(most.gradients, plan.gradients);
        EXPECT_EQ(most.optimizer, plan.optimizer);
        EXPECT_EQ(most.staging, plan.staging);
      }
    }
  }
}

TEST(Zero1Optimizer, StateShrinksWithTheRanksThatShareIt) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const int64_t masters = dtype == DType::kBf16 ? 1 : 0;
    for (const MeshSizes& sizes : ManyMeshes()) {
      OnMesh(sizes, {.dtype = dtype}, {}, [&](OptimizerRank& rank) {
        const BufferSizes held = SizesOf(rank);
        const int64_t most = (masters + 2) * held.shards;
        EXPECT_LE(rank.optimizer->state_bytes(), 4 * most);
        EXPECT_GE(rank.optimizer->state_bytes(), 4 * (most - 2 * (held.padded - held.numel)));
        return absl::OkStatus();
      });
      OnMesh(sizes, {.dtype = dtype}, {.zero1 = false}, [&](OptimizerRank& rank) {
        const BufferSizes held = SizesOf(rank);
        EXPECT_EQ(rank.optimizer->state_bytes(), 4 * (masters * held.padded + 2 * held.numel));
        return absl::OkStatus();
      });
    }
  }
}

TEST(Zero1Optimizer, OnlyWhatIsTrainedHasMoments) {
  const StoreOptions lobe_only{.lobe_only = true};
  for (const MeshSizes& sizes : ManyMeshes()) {
    std::mutex mutex;
    int64_t bytes = 0;
    Assembled state;
    OnMesh(sizes, lobe_only, {}, [&](OptimizerRank& rank) {
      ELA_RETURN_IF_ERROR(rank.Steps(1));
      state.Add(rank.optimizer->Pieces());
      const std::lock_guard<std::mutex> lock(mutex);
      bytes += rank.optimizer->state_bytes();
      return absl::OkStatus();
    });
    EXPECT_EQ(bytes, 4 * 2 * 2 * (8 + 3 * 64));
    const std::vector<v1::TensorRecord> records =
        CheckpointTensors(ParameterStore(job::Parameters(SmallModel()), lobe_only));
    EXPECT_EQ(state.tensors().size(), records.size());
    for (const v1::TensorRecord& r : records) EXPECT_EQ(state.tensors().count(r.name()), 1u);
  }
}

TEST(Zero1Optimizer, ASnapshotStaysWhatItWas) {
  Assembled before, snapshot_after, live_after;
  OnMesh({2, 1, 2}, {}, {}, [&](OptimizerRank& rank) {
    OptimizerSnapshot snapshot;
    ELA_RETURN_IF_ERROR(rank.Steps(1));
    before.Add(rank.optimizer->Pieces());
    rank.optimizer->Snapshot(&snapshot);
    const float* memory = snapshot.memory.data();
    ELA_RETURN_IF_ERROR(rank.Steps(2));
    snapshot_after.Add(snapshot.pieces);
    live_after.Add(rank.optimizer->Pieces());
    rank.optimizer->Snapshot(&snapshot);
    EXPECT_EQ(snapshot.memory.data(), memory);  // reused
    return absl::OkStatus();
  });
  EXPECT_TRUE(snapshot_after.tensors() == before.tensors());
  EXPECT_FALSE(live_after.tensors() == before.tensors());
}

}  // namespace
}  // namespace ela::trainer
