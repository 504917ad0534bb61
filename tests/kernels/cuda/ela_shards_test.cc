// Exact linear attention on CUDA in shards of rows, by the states that they exchange.
#include "tests/kernels/cuda/ela_testing.h"

namespace ela::kernels::cuda {
namespace {

using namespace ela::testing::device;  // NOLINT

/// The same attention in shards of rows, whose states are folded as ranks would.
void CheckShards(const ElaConfig& config, DType dtype, const std::vector<int64_t>& cuts) {
  const int64_t rows = cuts.back(), size = ElaStateSize(config);
  const Attention a = MakeAttention(config, MakeSpans({rows}, true), Family::kNormal, 3,
                                    [&](double x) { return RoundTo(dtype, x); });
  CudaContext ctx;
  const size_t shards = cuts.size() - 1;
  std::vector<std::unique_ptr<Shard>> shard;
  std::vector<DeviceBuffer> state, gstate, before, after, gbefore, gafter;
  for (size_t r = 0; r < shards; ++r) {
    shard.push_back(std::make_unique<Shard>(a, dtype, cuts[r], cuts[r + 1],
                                            MakeSpans({cuts[r + 1] - cuts[r]}, true)));
    for (auto* states : {&state, &gstate, &before, &after, &gbefore, &gafter}) {
      states->emplace_back(DType::kF32, 1, size);
      cuda::ElaStateIdentity(ctx, states->back().tensor(), config);
    }
    shard[r]->LocalState(ctx, state[r].tensor(), SpanEdge::kFirst);
  }
  const auto fold = [&](std::vector<DeviceBuffer>& to, std::vector<DeviceBuffer>& from, bool left,
                        bool reverse) {
    for (size_t r = 0; r < shards; ++r) {
      for (size_t i = 0; i < shards; ++i) {
        const size_t j = reverse ? shards - 1 - i : i;
        if (left ? j < r : j > r) {
          cuda::ElaFold(ctx, to[r].tensor(), from[j].tensor(), config, {1}, reverse);
        }
      }
    }
  };
  fold(before, state, true, false);
  if (!config.causal) fold(after, state, false, false);
  for (size_t r = 0; r < shards; ++r) {
    const Tensor last = config.causal ? Tensor() : after[r].tensor();
    shard[r]->Forward(ctx, before[r].tensor(), last);
    shard[r]->LocalGradState(ctx, gstate[r].tensor(), SpanEdge::kLast);
  }
  fold(gafter, gstate, false, true);
  if (!config.causal) fold(gbefore, gstate, true, true);
  for (size_t r = 0; r < shards; ++r) {
    const Tensor last = config.causal ? Tensor() : after[r].tensor();
    const Tensor first = config.causal ? Tensor() : gbefore[r].tensor();
    shard[r]->Backward(ctx, before[r].tensor(), last, first, gafter[r].tensor());
    ctx.Synchronize();
    ExpectClose(ErrorsOf(*shard[r], a, cuts[r], cuts[r + 1]), ToleranceOf(dtype, Family::kNormal),
                cuts[r + 1] - cuts[r], Describe(config, dtype, "shard"));
  }
}

TEST_F(Ela, ShardsComputeWhatOneComputes) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const int64_t dim : {64, 128}) {
      CheckShards(Config(FeatureMap::kHadamardExp, 2, dim, true), dtype, {0, 70, 71, 200});
      CheckShards(Config(FeatureMap::kHadamardExp, 2, dim, true, true), dtype, {0, 70, 71, 150});
      CheckShards(Config(FeatureMap::kHadamardExp, 2, dim, false), dtype, {0, 70, 71, 200});
      for (const bool causal : {true, false}) {  // shards without rows
        const ElaConfig config = Config(FeatureMap::kHadamardExp, 2, dim, causal);
        CheckShards(config, dtype, {0, 70, 70, 200});
        CheckShards(config, dtype, {0, 0, 70, 130, 130});
      }
    }
    CheckShards(Config(FeatureMap::kSumSquared, 2, 32, true, true), dtype, {0, 70, 71, 100});
    CheckShards(Config(FeatureMap::kSumSquared, 2, 32, false), dtype, {0, 70, 70, 100});
    CheckShards(Config(FeatureMap::kModulatedDot, 2, 32, false), dtype, {0, 70, 71, 100});
  }
}

TEST_F(Ela, FoldingWithTheIdentityChangesNoBit) {
  const ElaConfig config = Config(FeatureMap::kHadamardExp, 2, 64, true, true);
  const Attention a = MakeAttention(config, MakeSpans({50}, true), Family::kNormal, 3,
                                    [](double x) { return RoundTo(DType::kF32, x); });
  CudaContext ctx;
  Shard shard(a, DType::kF32, 0, 50, a.spans);
  DeviceBuffer state(DType::kF32, 1, ElaStateSize(config)),
      same(DType::kF32, 1, state.tensor().dim(1));
  DeviceBuffer identity(DType::kF32, 1, state.tensor().dim(1));
  shard.LocalState(ctx, state.tensor(), SpanEdge::kFirst);
  shard.LocalState(ctx, same.tensor(), SpanEdge::kFirst);
  cuda::ElaStateIdentity(ctx, identity.tensor(), config);
  cuda::ElaFold(ctx, state.tensor(), identity.tensor(), config, {}, false);
  cuda::ElaFold(ctx, identity.tensor(), same.tensor(), config, {}, false);
  ctx.Synchronize();
  EXPECT_EQ(state.Get(), same.Get());
  EXPECT_EQ(identity.Get(), same.Get());
}

}  // namespace
}  // namespace ela::kernels::cuda
