// Sums of gradients and gathers of parameters that run beside what the ranks compute.
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "tests/trainer/parallel/checks.h"
#include "trainer/optim/zero1_optimizer.h"

namespace ela::trainer {
namespace {

using kernels::Tensor;

constexpr int64_t kLayers = 3;

v1::ModelSpec ModelOf(int64_t width, int64_t experts) {
  v1::ModelSpec model;
  model.set_vocab_size(50);
  model.set_hidden_size(width);
  model.set_num_layers(kLayers);
  model.set_num_attention_heads(1);
  model.set_final_norm(true);
  model.mutable_moe()->set_num_experts(experts);
  model.mutable_moe()->set_intermediate_size(width);
  return model;
}

/// Of very different sizes, so that another order of sums gives other bits.
std::vector<float> Gradients(int64_t numel, int64_t salt) {
  std::vector<float> values(static_cast<size_t>(numel));
  uint64_t x = static_cast<uint64_t>(salt) * 0x9e3779b97f4a7c15 + 1;
  for (float& value : values) {
    x = x * 6364136223846793005 + 1442695040888963407;
    const auto sign = static_cast<float>(static_cast<int64_t>(x >> 40) - (1 << 23)) * 0x1p-23f;
    value = std::ldexp(sign, static_cast<int>(x >> 33 & 15) - 12);
  }
  return values;
}

/// One rank's store and optimizer, on a card if `device` is one.
struct Rank {
  kernels::Arena arena;
  kernels::Counters counters;
  kernels::Context ctx;
  std::unique_ptr<ParameterStore> store;
  std::unique_ptr<Zero1Optimizer> optimizer;
  int rank;  // of the world

  absl::Status Build(const Mesh& mesh, const v1::ModelSpec& model, const StoreOptions& options) {
    rank = mesh.world().rank();
    store = std::make_unique<ParameterStore>(job::Parameters(model), mesh, options);
    optimizer = std::make_unique<Zero1Optimizer>(&mesh, store.get(), OptimizerConfig());
    ctx = store->memory();
    arena.Reserve(size_t{1} << 20, ctx.backend);
    ctx.scratch = &arena;
    ctx.counters = &counters;
    return optimizer->Fill(ctx, InitialSource(model.num_layers(), 3));
  }

  /// A part's gradients, as a backward pass leaves them.
  void WritePart(int64_t part, int64_t step) {
    for (const ParameterClass cls : kParameterClasses) {
      for (const ParameterBucket& bucket : store->buckets(cls)) {
        if (bucket.part != part) continue;
        const int64_t salt =
            ((bucket.begin * 2 + static_cast<int64_t>(cls)) * 64 + step) * 64 + rank;
        kernels::CopyIn(ctx, store->flat_grads(cls).Rows(bucket.begin, bucket.end),
                        Gradients(bucket.end - bucket.begin, salt).data());
      }
    }
  }

  absl::Status Step(int64_t step, bool early) {
    for (int64_t part = 0; early && part <= kLayers; ++part) {
      ELA_RETURN_IF_ERROR(optimizer->AwaitParameters(part));
    }
    for (int64_t part = kLayers; part >= 0; --part) {
      WritePart(part, step);
      if (early && part > 0) ELA_RETURN_IF_ERROR(optimizer->StartReducing(ctx, part));
    }
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict, optimizer->ReduceGradients(ctx, true));
    ELA_EXPECT_THAT(verdict.finite && verdict.norm > 0);
    return optimizer->Update(ctx, verdict, 0.01, step);
  }
};

absl::StatusOr<std::vector<char>> ParametersAfter(int64_t steps, const Mesh& mesh,
                                                  const v1::ModelSpec& model,
                                                  const StoreOptions& options, bool early) {
  Rank rank;
  ELA_RETURN_IF_ERROR(rank.Build(mesh, model, options));
  for (int64_t step = 1; step <= steps; ++step) ELA_RETURN_IF_ERROR(rank.Step(step, early));
  ELA_RETURN_IF_ERROR(rank.optimizer->AwaitParameters());
  std::vector<char> bytes;
  for (const ParameterClass cls : kParameterClasses) {
    const Tensor params = rank.store->flat_params(cls);
    const size_t begin = bytes.size();
    bytes.resize(begin + static_cast<size_t>(params.numel()) * kernels::SizeOf(params.dtype()));
    kernels::CopyOut(rank.ctx, bytes.data() + begin, params);
  }
  return bytes;
}

}  // namespace

absl::Status SumsBesideAndAfterGiveTheSameBits(Communicator& world, kernels::CudaDevice* device) {
  const int64_t width = device == nullptr ? 8 : 256;  // a card is to be at work for a while
  const v1::ModelSpec model = ModelOf(width, 2 * world.size());
  for (const int expert : {1, world.size()}) {
    ELA_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(&world, {world.size(), 1, expert},
                                                       model.moe().num_experts()));
    for (const kernels::DType dtype : {kernels::DType::kF32, kernels::DType::kBf16}) {
      for (const int64_t numel : {width * width, job::kBucketNumel}) {
        const StoreOptions options{.dtype = dtype, .device = device, .bucket_numel = numel};
        const auto after = [&](int64_t steps, bool early) {
          return ParametersAfter(steps, *mesh, model, options, early);
        };
        ELA_ASSIGN_OR_RETURN(const std::vector<char> before, after(0, false));
        ELA_ASSIGN_OR_RETURN(const std::vector<char> late, after(3, false));
        ELA_ASSIGN_OR_RETURN(const std::vector<char> early, after(3, true));
        ELA_EXPECT_THAT(early == late, " with ", expert, " expert ranks, buckets of ", numel);
        ELA_EXPECT_THAT(early != before);
      }
    }
  }
  return absl::OkStatus();
}

std::vector<NamedCheck> OptimizerChecks() {
  return {{"SumsBesideAndAfterGiveTheSameBits",
           [](Communicator& world) { return SumsBesideAndAfterGiveTheSameBits(world, nullptr); }}};
}

}  // namespace ela::trainer
