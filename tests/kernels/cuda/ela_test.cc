// Exact linear attention on CUDA against its definition in double, over the input families.
#include "tests/kernels/cuda/ela_testing.h"

namespace ela::kernels::cuda {
namespace {

using namespace ela::testing::device;  // NOLINT

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

// Not with decay: beside 2^20 that of a token is lost in rounding.
TEST_F(Ela, ElementsBeyond2To20CountAs2To20) {
  for (const int64_t dim : {64, 128, 40}) {
    for (const bool causal : {true, false}) {
      for (const Family family : kHugeFamilies) {
        for (const DType dtype : {DType::kF32, DType::kBf16}) {
          const auto config = [&](int64_t heads) {
            return Config(FeatureMap::kHadamardExp, heads, dim, causal);
          };
          Check(config(1), MakeSpans({64}, true), dtype, family);
          Check(config(2), MakeSpans({100}, true), dtype, family);
          Check(config(2), MakeSpans({200}, true), dtype, family);
          Check(config(2), MakeSpans({30, 70, 100}, true), dtype, family);
        }
      }
    }
  }
}

TEST_F(Ela, ElementsBeyond2To20CountAs2To20InPolynomialKernels) {
  for (const FeatureMap kernel :
       {FeatureMap::kSumSquared, FeatureMap::kSubSquared, FeatureMap::kModulatedDot}) {
    for (const Family family : {Family::kFloor, Family::kCeiling}) {
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        Check(Config(kernel, 2, 64, true), MakeSpans({100}, true), dtype, family);
        Check(Config(kernel, 2, 64, false), MakeSpans({100}, true), dtype, family);
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

// So many documents that their states are not all held at once.
TEST_F(Ela, ManyDocumentsBothWays) {
  std::vector<int64_t> lengths(100, 1);
  lengths[0] = 5, lengths[59] = 130, lengths[60] = 0, lengths[99] = 70;
  for (const FeatureMap kernel : {FeatureMap::kHadamardExp, FeatureMap::kSumSquared}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      Check(Config(kernel, 16, 128, false), MakeSpans(lengths, true), dtype, Family::kNormal);
      Check(Config(kernel, 16, 128, false), MakeSpans(lengths, false), dtype, Family::kNormal);
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
