// What a job is promised to take is what its arenas take.
#include <gtest/gtest.h>

#include "kernels/device.h"
#include "kernels/loss/tiles.h"
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
          {{"training.recompute=true", "training.recompute_layers=1"}, {1, 1, 1}},
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

TEST(MemoryPlan, OfADenseNetworkIsWhatItSavesToTheByte) {
  const v1::TrainingJob job =
      MediumJob({"model.moe.num_experts=1", "model.moe.top_k=1", "model.moe.label_bias=none"});
  EXPECT_EQ(static_cast<int64_t>(Measure(job, {}).saved_bytes), job::PlanMemory(job).activations);
}

/// Jobs of the size of a card's: a thousand rows a multiprocessor.
v1::TrainingJob CardJob(std::vector<std::string> sets) {
  sets.insert(sets.begin(), {"model.vocab_size=8000", "model.hidden_size=512",
                             "model.num_attention_heads=4", "model.moe.intermediate_size=1024",
                             "training.precision=bf16", "training.global_batch_size=16",
                             "training.micro_batch_size=16", "data.seq_len=8192"});
  return TinyJob(sets);
}

struct Taken {
  int64_t activations = 0, workspace = 0;
};

/// Of documents of `document` tokens; 0: whole sequences.
Taken MeasureOnCard(const v1::TrainingJob& job, const job::MemoryPlan& plan,
                    kernels::CudaDevice* device, int64_t document = 0) {
  const v1::JobSpec& spec = job.spec();
  const bool bf16 = spec.training().precision() == v1::PRECISION_BF16;
  kernels::Arena scratch, saved;
  // Room for twice the plan: what is taken shows what was needed.
  scratch.Reserve(2 * static_cast<size_t>(plan.workspace), Backend::kCuda);
  saved.Reserve(2 * static_cast<size_t>(plan.activations), Backend::kCuda);
  kernels::Counters counters;
  kernels::Context ctx;
  ctx.backend = Backend::kCuda;
  ctx.device = device;
  ctx.stream = device->stream();
  ctx.scratch = &scratch;
  ctx.counters = &counters;
  const LayerContext layer = MakeLayerContext(ctx, &saved, bf16 ? DType::kBf16 : DType::kF32);
  ParameterStore store(job::Parameters(spec.model()),
                       StoreOptions{.dtype = layer.element, .device = device});
  EXPECT_EQ(store.Fill(InitialSource(spec.model().num_layers(), 1)), absl::OkStatus());
  store.ZeroGrads();
  Decoder decoder(
      spec.model(), &store, nullptr,
      DecoderOptions{.recompute_layers = job::RecomputedLayers(spec),
                     .causal = spec.training().objective() != v1::OBJECTIVE_MASKED_TOKEN});
  DocumentStarts starts(static_cast<size_t>(spec.training().micro_batch_size()), {0});
  for (int64_t at = document; document > 0 && at < spec.data().seq_len(); at += document) {
    for (auto& of_sequence : starts) of_sequence.push_back(at);
  }
  const Documents documents =
      RandomDocuments(spec.data().seq_len(), starts, spec.model().vocab_size(), 4);
  const TokenRows rows(SliceOf(documents, 0, documents.sequences(), 0, documents.length),
                       documents.length, 0, 1);
  RoutingStatistics routing(spec.model().num_layers(), spec.model().moe().num_experts());
  EXPECT_EQ(decoder.Forward(layer, rows, &routing), absl::OkStatus());
  double loss_sum = 0;
  EXPECT_EQ(decoder.Backward(layer, rows, 1e-5, kernels::Tensor(), &loss_sum), absl::OkStatus());
  return {static_cast<int64_t>(saved.peak_bytes()), static_cast<int64_t>(scratch.peak_bytes())};
}

TEST(MemoryPlan, OnACardIsWhatTheArenasHoldToAFiftieth) {
  if (kernels::NumCudaDevices() == 0) GTEST_SKIP() << kernels::WhyNoCudaDevice();
  const auto device = kernels::CudaDevice::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"training.precision=fp32"},
      {"training.recompute=true", "model.attention.softmax_every=2", "data.seq_len=2048"},
      {"training.recompute=true", "training.recompute_layers=1"},
      {"model.moe.num_experts=1", "model.moe.top_k=1", "model.memory_lobe.enabled=true",
       "model.memory_lobe.num_heads=4"},
      {"training.global_batch_size=1", "training.micro_batch_size=1", "data.seq_len=131072"},
      {"training.global_batch_size=1", "training.micro_batch_size=1", "model.vocab_size=32000"},
      {"training.global_batch_size=1", "training.micro_batch_size=1", "model.vocab_size=50257",
       "training.precision=fp32"},
      {"model.attention.kernel=sum_squared", "model.attention.decay=none"}};
  for (const std::vector<std::string>& sets : cases) {
    SCOPED_TRACE(::testing::PrintToString(sets));
    const v1::TrainingJob job = CardJob(sets);
    const job::MemoryPlan plan = job::PlanMemory(job, /*on_device=*/true);
    const Taken taken = MeasureOnCard(job, plan, device->get());
    const auto planned = static_cast<double>(plan.activations + plan.workspace);
    EXPECT_NEAR(planned / static_cast<double>(taken.activations + taken.workspace), 1, 0.02)
        << plan.activations << " of " << taken.activations << ", " << plan.workspace << " of "
        << taken.workspace;
  }
}

/// Of jobs whose widest moment is the loss, against a small vocabulary.
int64_t PlannedForVocabulary(const std::string& precision, int64_t v) {
  const auto workspace = [&](int64_t size) {
    const v1::TrainingJob job =
        CardJob({"model.hidden_size=32", "model.moe.intermediate_size=32",
                 "training.global_batch_size=1", "training.micro_batch_size=1",
                 "training.precision=" + precision, "model.vocab_size=" + std::to_string(size)});
    return job::PlanMemory(job, /*on_device=*/true).workspace;
  };
  return workspace(v) - workspace(1000);
}

// The plan, which does not depend on the kernels, says again how they cut the loss.
TEST(MemoryPlan, OnACardHoldsTheTilesOfTheLoss) {
  for (const int64_t element : {2, 4}) {
    const auto bytes = [&](int64_t v) {
      const kernels::LossTiles tiles = kernels::LossTilesFor(8192, v, element);
      const auto block = [](int64_t size) { return (size + 255) / 256 * 256; };
      return block(tiles.logit_rows * tiles.stride * 4) +
             block(tiles.gradient_rows * tiles.stride * element) + block(tiles.gradient_rows * 8);
    };
    for (const int64_t v : {999, 8000, 32000, 50257, 151936, 300000, 500000}) {
      EXPECT_EQ(PlannedForVocabulary(element == 2 ? "bf16" : "fp32", v), bytes(v) - bytes(1000))
          << v << " logits of " << element << " bytes";
    }
  }
}

// Their states are not all in memory at once.
TEST(MemoryPlan, OnACardManyDocumentsBothWaysFitIntoIt) {
  if (kernels::NumCudaDevices() == 0) GTEST_SKIP() << kernels::WhyNoCudaDevice();
  const auto device = kernels::CudaDevice::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  for (const char* precision : {"training.precision=bf16", "training.precision=fp32"}) {
    const v1::TrainingJob job = CardJob(
        {precision, "training.objective=masked_token", "model.attention.decay=none",
         "model.moe={num_experts: 1, top_k: 1, label_bias: none, intermediate_size: 256}",
         "training.global_batch_size=1", "training.micro_batch_size=1", "data.seq_len=131072"});
    const job::MemoryPlan plan = job::PlanMemory(job, /*on_device=*/true);
    const Taken taken = MeasureOnCard(job, plan, device->get(), /*document=*/64);
    EXPECT_LE(taken.workspace, plan.workspace) << precision;
    EXPECT_NEAR(static_cast<double>(plan.workspace) / static_cast<double>(taken.workspace), 1, 0.03)
        << precision;
  }
}

}  // namespace
}  // namespace ela::trainer
