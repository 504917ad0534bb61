// What a job is promised to take is what its arenas take.
#include <gtest/gtest.h>

#include "proto/job/plan.h"
#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;
using kernels::DType;

v1::TrainingJob MediumJob(std::vector<std::string> sets) {
  sets.insert(sets.begin(),
              {"model.vocab_size=2000", "model.hidden_size=64", "model.num_attention_heads=4",
               "model.moe.intermediate_size=64", "model.attention.decay=head",
               "model.memory_lobe.enabled=true", "data.seq_len=200"});
  return TinyJob(sets);
}

const char* const kLong = "data.seq_len=2400";

struct Case {
  std::vector<std::string> sets;
  MeshSizes mesh;
};

/// Where no number depends on how tokens choose experts: each rank has all of them. Several ranks
/// have so many rows that a layer needs more than the reduction of gradients, which is not run
/// here.
std::vector<Case> Cases() {
  return {{{}, {1, 1, 1}},
          {{"parallelism.sequence=2", "model.residual=hyper_link", kLong}, {1, 2, 1}},
          {{"parallelism.data=2", "training.micro_batch_size=1", kLong}, {2, 1, 1}},
          {{"training.recompute=true", "model.attention.softmax_every=2"}, {1, 1, 1}},
          {{"parallelism.sequence=2", "model.attention.softmax_every=2", kLong}, {1, 2, 1}},
          {{"training.precision=bf16", "model.memory_lobe.norm=false"}, {1, 1, 1}},
          {{"model.attention.kernel=sum_squared", "model.attention.decay=none",
            "parallelism.sequence=2", kLong},
           {1, 2, 1}},
          {{"model.memory_lobe.mode=bidirectional", "training.objective=masked_token",
            "model.attention.decay=none", "parallelism.sequence=2", kLong},
           {1, 2, 1}}};
}

Outcome Measure(const v1::TrainingJob& job, const MeshSizes& mesh) {
  const Documents documents = RandomDocuments(job.spec().data().seq_len(), {{0}, {0, 77}}, 2000, 4);
  const bool bf16 = job.spec().training().precision() == v1::PRECISION_BF16;
  Passes passes = {.backend = Backend::kCpu, .mesh = mesh};
  passes.element = bf16 ? DType::kBf16 : DType::kF32;
  return RunModel(job, documents, InitialSource(2, 1), passes);
}

// To a fiftieth; the workspace of some layers, whose widest moment is not the planned one, to a
// sixteenth more than they take.
TEST(MemoryPlan, IsWhatTheArenasHold) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::PrintToString(c.sets));
    const v1::TrainingJob job = MediumJob(c.sets);
    const job::MemoryPlan plan = job::PlanMemory(job);
    const Outcome taken = Measure(job, c.mesh);
    const auto ratio = [](int64_t planned, size_t bytes) {
      return static_cast<double>(planned) / static_cast<double>(bytes);
    };
    EXPECT_NEAR(ratio(plan.activations, taken.saved_bytes), 1, 0.02);
    EXPECT_GE(ratio(plan.workspace, taken.scratch_bytes), 0.98);
    EXPECT_LE(ratio(plan.workspace, taken.scratch_bytes), 1.0625);
  }
}

}  // namespace
}  // namespace ela::trainer
