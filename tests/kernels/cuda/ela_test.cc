// Exact linear attention on CUDA against its definition in double, over the input families.
//
// Tolerances. float: sums of a few hundred terms whose exponents, up to 2000 in size, are known to
// 1.2e-4 at worst, and which decay moves by a rounding per token. bf16: outputs are rounded to 8
// bits (1.1e-3 rms), and on the Hopper path so are the weights that enter products: 3e-3 forward,
// 6e-3 for gradients. Where one weight is nearly all of a row (wide logits, one row alone), dp and
// delta cancel and what is left of their rounding counts for more. lse: the largest error, of a row
// that one rounded weight (3 x 2^-9) makes up.
#include <cstdio>

#include "tests/kernels/cuda/ela_testing.h"

namespace ela::kernels::cuda {
namespace {

using namespace ela::testing::device;  // NOLINT

struct Tolerance {
  double forward, gradient, lse;
};

Tolerance ToleranceOf(DType dtype, Family family) {
  if (dtype == DType::kBf16) return {3e-3, family == Family::kWide ? 8e-3 : 6e-3, 8e-3};
  const bool large = family == Family::kThousand || family == Family::kJumping;
  return large ? Tolerance{1e-3, 1e-3, 1e-3} : Tolerance{5e-5, 1e-4, 5e-4};
}

/// `rows`: of the shard; the gradients of one row alone are differences of equal numbers.
void ExpectClose(const Errors& e, Tolerance tolerance, int64_t rows, const std::string& what) {
  if (rows == 1) tolerance.gradient *= 3;
  std::printf("%-44s y %.1e lse %.1e dq %.1e dk %.1e dv %.1e\n", what.c_str(), e.y, e.lse, e.dq,
              e.dk, e.dv);
  EXPECT_TRUE(e.y <= tolerance.forward) << what;
  EXPECT_TRUE(e.lse <= tolerance.lse) << what;
  EXPECT_TRUE(e.worst_gradient() <= tolerance.gradient) << what;
}

std::string Describe(const ElaConfig& c, DType dtype, const char* family) {
  constexpr const char* kKernels[] = {"exp", "sum", "sub", "mod"};
  return std::string(kKernels[static_cast<size_t>(c.kernel)]) + " " + family +
         (dtype == DType::kBf16 ? " bf16" : " f32") + (c.causal ? " causal" : " full") +
         (c.log_decay.empty() ? "" : " decay") + " D" + std::to_string(c.head_dim);
}

/// bf16 on both paths.
void Check(const ElaConfig& config, const Spans& spans, DType dtype, Family family,
           uint64_t seed = 1) {
  const Attention a =
      MakeAttention(config, spans, family, seed, [&](double x) { return RoundTo(dtype, x); });
  CudaContext ctx;
  for (const bool portable : {false, true}) {
    if (portable && dtype != DType::kBf16) continue;
    Shard shard(a, dtype, 0, a.rows(), spans);
    shard.portable = portable;
    shard.Forward(ctx);
    shard.Backward(ctx);
    ctx.Synchronize();
    ExpectClose(ErrorsOf(shard, a, 0, a.rows()), ToleranceOf(dtype, family), a.rows(),
                Describe(config, dtype, NameOf(family)) + (portable ? " portable" : ""));
  }
}

class Ela : public CudaTest {};

TEST_F(Ela, SurvivesTheInputFamilies) {
  for (const int64_t dim : {64, 128, 40}) {
    for (const bool causal : {true, false}) {
      for (const Family family : kFamilies) {
        for (const DType dtype : {DType::kF32, DType::kBf16}) {
          Check(Config(FeatureMap::kHadamardExp, 2, dim, causal), MakeSpans({200}, true), dtype,
                family);
        }
      }
    }
  }
}

TEST_F(Ela, SurvivesTheInputFamiliesWithDecay) {
  for (const int64_t dim : {64, 128}) {
    for (const Family family : kFamilies) {
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        Check(Config(FeatureMap::kHadamardExp, 3, dim, true, true), MakeSpans({150}, true), dtype,
              family);
      }
    }
  }
}

TEST_F(Ela, PolynomialKernelsAreRight) {
  for (const FeatureMap kernel :
       {FeatureMap::kSumSquared, FeatureMap::kSubSquared, FeatureMap::kModulatedDot}) {
    for (const int64_t dim : {8, 64, 128}) {
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        Check(Config(kernel, 2, dim, true), MakeSpans({130}, true), dtype, Family::kNormal);
        Check(Config(kernel, 2, dim, true, true), MakeSpans({70}, true), dtype, Family::kNormal);
        Check(Config(kernel, 2, dim, false), MakeSpans({130}, true), dtype, Family::kNormal);
      }
    }
  }
}

TEST_F(Ela, AwkwardLengthsAndPackedDocuments) {
  for (const bool causal : {true, false}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const int64_t dim : {64, 128, 256}) {
        const ElaConfig config = Config(FeatureMap::kHadamardExp, 2, dim, causal);
        for (const int64_t length : {1, 63, 65}) {
          Check(config, MakeSpans({length}, true), dtype, Family::kNormal);
        }
        Check(config, MakeSpans({1, 64, 0, 37, 130, 2}, true), dtype, Family::kNormal);
        Check(config, MakeSpans({70, 64, 0, 37}, false), dtype, Family::kNormal);
      }
    }
  }
}

// So many heads that one pass fills a card: nothing is split.
TEST_F(Ela, ManyHeadsInOnePass) {
  for (const int64_t dim : {64, 128}) {
    Check(Config(FeatureMap::kHadamardExp, 140, dim, true, true), MakeSpans({130}, true),
          DType::kBf16, Family::kNormal);
    Check(Config(FeatureMap::kHadamardExp, 140, dim, true), MakeSpans({70, 3, 60}, true),
          DType::kBf16, Family::kJumping);
  }
}

// What follows NaN in a sequence is NaN; the kernels end, and other documents are as they were.
TEST_F(Ela, NotANumberStaysInItsDocument) {
  for (const int64_t dim : {64, 128}) {
    const ElaConfig config = Config(FeatureMap::kHadamardExp, 1, dim, true);
    Attention a = MakeAttention(config, MakeSpans({100, 90}, true), Family::kNormal, 11,
                                [](double x) { return RoundTo(DType::kBf16, x); });
    const std::vector<double> expected = Slice(a.y, 100, 190, dim);
    a.k[static_cast<size_t>(30 * dim)] = NAN;
    CudaContext ctx;
    Shard shard(a, DType::kBf16, 0, 190, a.spans);
    shard.Forward(ctx);
    shard.Backward(ctx);
    ctx.Synchronize();
    const std::vector<double> y = shard.y.Get();
    EXPECT_TRUE(std::isnan(y[static_cast<size_t>(40 * dim)]));
    EXPECT_LE(RmsError(Slice(y, 100, 190, dim), expected, expected), 3e-3);
  }
}

// Only the Hopper path has a slower one beside it.
TEST_F(Ela, ChunksWhoseKeysGrowTooMuchAreCountedOnce) {
  int major = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  if (major != 9) GTEST_SKIP() << "not a Hopper card";
  const ElaConfig config = Config(FeatureMap::kHadamardExp, 2, 64, true);
  CudaContext ctx;
  DeviceBuffer counted(DType::kI64, 1, 1);
  const auto take = [&] {
    int64_t count = 0;
    const Tensor chunks = counted.tensor().View({1});
    Clear(ctx, chunks);
    kernels::ElaTakeSlowPathChunks(ctx, chunks);
    CopyOut(ctx, &count, chunks);
    return count;
  };
  take();  // what other tests left
  for (const Family family : {Family::kNormal, Family::kJumping}) {
    const Attention a = MakeAttention(config, MakeSpans({200}, true), family, 1,
                                      [](double x) { return RoundTo(DType::kBf16, x); });
    Shard shard(a, DType::kBf16, 0, a.rows(), a.spans);
    shard.Forward(ctx);
    EXPECT_EQ(take() > 0, family == Family::kJumping);
    EXPECT_EQ(take(), 0);
  }
}

TEST_F(Ela, ValuesMayBeWiderThanKeys) {
  ElaConfig config = Config(FeatureMap::kHadamardExp, 2, 24, true);
  config.value_dim = 72;
  Check(config, MakeSpans({100}, true), DType::kF32, Family::kNormal);
  config.kernel = FeatureMap::kSumSquared;
  Check(config, MakeSpans({100}, true), DType::kF32, Family::kNormal);
}

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
    }
    CheckShards(Config(FeatureMap::kSumSquared, 2, 32, true, true), dtype, {0, 70, 71, 100});
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

/// A prompt by the forward pass, then one token after another.
void CheckDecode(const ElaConfig& config, DType dtype) {
  const int64_t prompt = 20, rows = 40;
  const Attention a = MakeAttention(config, MakeSpans({rows}, true), Family::kNormal, 5,
                                    [&](double x) { return RoundTo(dtype, x); });
  CudaContext ctx;
  Shard start(a, dtype, 0, prompt, MakeSpans({prompt}, true));
  DeviceBuffer state(DType::kF32, 1, ElaStateSize(config));
  start.LocalState(ctx, state.tensor(), SpanEdge::kLast);
  const int64_t keys = config.num_heads * config.head_dim;
  for (int64_t i = prompt; i < rows; ++i) {
    DeviceBuffer q(dtype, 1, keys), k(dtype, 1, keys), v(dtype, 1, keys), y(dtype, 1, keys);
    q.Set(Slice(a.q, i, i + 1, keys));
    k.Set(Slice(a.k, i, i + 1, keys));
    v.Set(Slice(a.v, i, i + 1, keys));
    cuda::ElaDecode(ctx, y.Heads(config.num_heads), state.tensor(), q.Heads(config.num_heads),
                    k.Heads(config.num_heads), v.Heads(config.num_heads), config);
    ctx.Synchronize();
    const double error =
        RmsError(y.Get(), Slice(a.y, i, i + 1, keys), Slice(a.y_size, i, i + 1, keys));
    EXPECT_TRUE(error <= ToleranceOf(dtype, Family::kNormal).forward) << error << " at " << i;
  }
}

TEST_F(Ela, DecodeGoesOnFromAPrompt) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const FeatureMap kernel : {FeatureMap::kHadamardExp, FeatureMap::kSumSquared,
                                    FeatureMap::kSubSquared, FeatureMap::kModulatedDot}) {
      CheckDecode(Config(kernel, 2, 64, true), dtype);
      CheckDecode(Config(kernel, 3, 128, true, true), dtype);
    }
  }
}

/// Row i of every sequence of `length` rows.
std::vector<double> RowOfEach(const std::vector<double>& x, int64_t i, int64_t length,
                              int64_t width) {
  std::vector<double> rows;
  for (int64_t at = i * width; at < static_cast<int64_t>(x.size()); at += length * width) {
    rows.insert(rows.end(), x.begin() + at, x.begin() + at + width);
  }
  return rows;
}

// So many states that every block takes several in turn.
TEST_F(Ela, DecodesManySequences) {
  const int64_t tokens = 3, heads = 2;
  for (const int64_t dim : {64, 128}) {
    const int64_t sequences = dim == 64 ? 1000 : 300, keys = heads * dim;
    const ElaConfig config = Config(FeatureMap::kHadamardExp, heads, dim, true, true);
    const Attention a = MakeAttention(
        config, MakeSpans(std::vector<int64_t>(static_cast<size_t>(sequences), tokens), false),
        Family::kNormal, 13, [](double x) { return RoundTo(DType::kBf16, x); });
    CudaContext ctx;
    DeviceBuffer state(DType::kF32, sequences, ElaStateSize(config));
    cuda::ElaStateIdentity(ctx, state.tensor(), config);
    for (int64_t i = 0; i < tokens; ++i) {
      const auto row = [&](const std::vector<double>& x) { return RowOfEach(x, i, tokens, keys); };
      DeviceBuffer q(DType::kBf16, sequences, keys, keys + 8), k(DType::kBf16, sequences, keys);
      DeviceBuffer v(DType::kBf16, sequences, keys), y(DType::kBf16, sequences, keys, keys + 16);
      q.Set(row(a.q)), k.Set(row(a.k)), v.Set(row(a.v));
      cuda::ElaDecode(ctx, y.Heads(heads), state.tensor(), q.Heads(heads), k.Heads(heads),
                      v.Heads(heads), config);
      ctx.Synchronize();
      EXPECT_LE(RmsError(y.Get(), row(a.y), row(a.y_size)), 3e-3) << dim << " at " << i;
    }
  }
}

TEST_F(Ela, SameResultTwice) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const ElaConfig config = Config(FeatureMap::kHadamardExp, 2, 64, true);
    const Attention a = MakeAttention(config, MakeSpans({300}, true), Family::kNormal, 7,
                                      [&](double x) { return RoundTo(dtype, x); });
    CudaContext ctx;
    std::vector<std::vector<double>> first;
    for (int run = 0; run < 2; ++run) {
      Shard shard(a, dtype, 0, 300, a.spans);
      shard.Forward(ctx);
      shard.Backward(ctx);
      ctx.Synchronize();
      const std::vector<std::vector<double>> got = {shard.y.Get(), shard.lse.Get(), shard.dq.Get(),
                                                    shard.dk.Get(), shard.dv.Get()};
      if (run == 0) first = got;
      EXPECT_EQ(got, first);
    }
  }
}

TEST_F(Ela, StatesKeptForTheBackwardPassChangeNoBit) {
  for (const int64_t dim : {64, 128}) {
    for (const bool causal : {true, false}) {
      const ElaConfig config = Config(FeatureMap::kHadamardExp, 2, dim, causal);
      const Attention a = MakeAttention(config, MakeSpans({300, 170}, false), Family::kNormal, 8,
                                        [](double x) { return RoundTo(DType::kBf16, x); });
      CudaContext ctx;
      std::vector<std::vector<double>> found;
      for (const bool keeps : {false, true}) {
        Shard shard(a, DType::kBf16, 0, 470, a.spans);
        shard.keeps_segments = keeps;
        shard.Forward(ctx);
        EXPECT_FALSE(shard.Segments().empty());
        shard.Backward(ctx);
        ctx.Synchronize();
        const std::vector<std::vector<double>> got = {shard.dq.Get(), shard.dk.Get(),
                                                      shard.dv.Get()};
        if (!keeps) found = got;
        EXPECT_EQ(got, found);
      }
    }
  }
}

TEST_F(Ela, FirstTokenOppositeToItsKeyIsItsValue) {
  ElaConfig config = Config(FeatureMap::kSumSquared, 1, 64, true);
  Attention a = MakeAttention(config, MakeSpans({1}, true), Family::kNormal, 9,
                              [](double x) { return RoundTo(DType::kF32, x); });
  for (size_t d = 0; d < a.k.size(); ++d) a.k[d] = -a.q[d];
  CudaContext ctx;
  Shard shard(a, DType::kF32, 0, 1, a.spans);
  shard.Forward(ctx);
  ctx.Synchronize();
  EXPECT_LE(RmsError(shard.y.Get(), a.v, a.v), 1e-6);
}

}  // namespace
}  // namespace ela::kernels::cuda
