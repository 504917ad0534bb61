#include "kernels/softmax_attention/softmax_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/elementwise/elementwise.h"
#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF64 = DType::kF64;

/// Rows of several sequences, one after another, with documents in them.
struct Layout {
  std::vector<int32_t> documents, positions;
  int64_t rows() const { return static_cast<int64_t>(documents.size()); }

  /// Sequences of `length`; a document starts at 0 and at each of `starts`.
  static Layout Of(int sequences, int32_t length, const std::vector<int32_t>& starts = {}) {
    Layout layout;
    int32_t document = -1;
    for (int s = 0; s < sequences; ++s) {
      for (int32_t i = 0; i < length; ++i) {
        if (i == 0 || std::count(starts.begin(), starts.end(), i) > 0) ++document;
        layout.documents.push_back(document);
        layout.positions.push_back(i);
      }
    }
    return layout;
  }
  Layout Part(int64_t begin, int64_t end) const {
    return {{documents.begin() + begin, documents.begin() + end},
            {positions.begin() + begin, positions.begin() + end}};
  }
  Buffer Documents() const { return Integers({rows()}, documents); }
  Buffer Positions() const { return Integers({rows()}, positions); }
};

/// Attention over one layout of queries and keys, with its buffers.
struct Attention {
  SoftmaxAttentionConfig config;
  DType dtype;
  Buffer q, k, v, dy, y, lse, delta, dq, dk, dv;
  Buffer documents, positions;
  int64_t rows;

  Attention(DType type, const Layout& layout, int64_t heads, int64_t d, bool causal,
            double scale = 1)
      : config{heads, d, causal},
        dtype(type),
        q(Input(type, {layout.rows(), heads, d}, 1, scale)),
        k(Input(type, {layout.rows(), heads, d}, 2, scale)),
        v(Input(type, {layout.rows(), heads, d}, 3)),
        dy(Input(type, {layout.rows(), heads, d}, 4)),
        y(ZeroBuffer(type, {layout.rows(), heads, d})),
        lse(StatisticOf(type), {layout.rows(), heads}),
        delta(StatisticOf(type), {layout.rows(), heads}),
        dq(ZeroBuffer(type, {layout.rows(), heads, d})),
        dk(ZeroBuffer(type, {layout.rows(), heads, d})),
        dv(ZeroBuffer(type, {layout.rows(), heads, d})),
        documents(layout.Documents()),
        positions(layout.Positions()),
        rows(layout.rows()) {
    ela::testing::Fill(lse, -std::numeric_limits<double>::infinity());
  }

  /// Queries [q_begin, q_end) against keys [k_begin, k_end).
  void Forward(const Context& ctx, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
    const Tensor doc = documents, pos = positions;
    SoftmaxAttentionForward(ctx, y.tensor().Rows(q_begin, q_end), lse.tensor().Rows(q_begin, q_end),
                            q.tensor().Rows(q_begin, q_end), k.tensor().Rows(k_begin, k_end),
                            v.tensor().Rows(k_begin, k_end), doc.Rows(q_begin, q_end),
                            doc.Rows(k_begin, k_end), pos.Rows(q_begin, q_end),
                            pos.Rows(k_begin, k_end), config);
  }
  void Forward(const Context& ctx) { Forward(ctx, 0, rows, 0, rows); }

  void Backward(const Context& ctx, int64_t q_begin, int64_t q_end, int64_t k_begin,
                int64_t k_end) {
    const Tensor doc = documents, pos = positions;
    SoftmaxAttentionBackward(ctx, dq.tensor().Rows(q_begin, q_end),
                             dk.tensor().Rows(k_begin, k_end), dv.tensor().Rows(k_begin, k_end),
                             dy.tensor().Rows(q_begin, q_end), q.tensor().Rows(q_begin, q_end),
                             k.tensor().Rows(k_begin, k_end), v.tensor().Rows(k_begin, k_end),
                             lse.tensor().Rows(q_begin, q_end), delta.tensor().Rows(q_begin, q_end),
                             doc.Rows(q_begin, q_end), doc.Rows(k_begin, k_end),
                             pos.Rows(q_begin, q_end), pos.Rows(k_begin, k_end), config);
  }
  void Backward(const Context& ctx) {
    RowDots(ctx, delta, dy, y);
    Backward(ctx, 0, rows, 0, rows);
  }
};

OpRun ForwardBackward(const Layout& layout, int64_t heads, int64_t d, bool causal,
                      double scale = 1) {
  return [=](const Context& ctx, DType dtype) {
    Attention a(dtype, layout, heads, d, causal, scale);
    a.Forward(ctx);
    a.Backward(ctx);
    return Outputs(std::move(a.y), std::move(a.lse), std::move(a.dq), std::move(a.dk),
                   std::move(a.dv));
  };
}

// Gradients in bf16 hang on y, which is rounded before delta is taken from it.
constexpr double kFloatError = 1e-5, kBf16Error = 1.5e-2;

void ExpectGood(const OpRun& run) { ExpectGoodOnCpu(run, kFloatError, kBf16Error); }

TEST(SoftmaxAttention, IsRightOnAwkwardShapes) {
  ExpectGood(ForwardBackward(Layout::Of(1, 0), 1, 8, true));
  ExpectGood(ForwardBackward(Layout::Of(1, 1), 2, 3, true));
  ExpectGood(ForwardBackward(Layout::Of(3, 63), 2, 5, true));
  ExpectGood(ForwardBackward(Layout::Of(1, 65), 1, 8, false));
  ExpectGood(ForwardBackward(Layout::Of(2, 257), 1, 17, true));
  ExpectGood(ForwardBackward(Layout::Of(1, 700), 1, 8, true));
}

TEST(SoftmaxAttention, IsRightForManyHeadsAndWideOnes) {
  ExpectGood(ForwardBackward(Layout::Of(1, 70), 9, 8, true));
  ExpectGood(ForwardBackward(Layout::Of(1, 40), 1, 256, true));
}

TEST(SoftmaxAttention, IsRightForPackedDocuments) {
  ExpectGood(ForwardBackward(Layout::Of(2, 150, {1, 2, 63, 64, 65, 149}), 2, 8, true));
  ExpectGood(ForwardBackward(Layout::Of(2, 150, {1, 2, 63, 64, 65, 149}), 2, 8, false));
}

TEST(SoftmaxAttention, IsRightForScoresOfManyThousands) {
  const OpRun run = ForwardBackward(Layout::Of(1, 90), 2, 16, true, /*scale=*/40);
  // A score of 6400 has an error of 2^-24 of it in float, and so has the weight's logarithm.
  ExpectMatchesReference(DType::kF32, 2e-3, run);
  ExpectSameBits(DType::kF32, run);
}

TEST(SoftmaxAttention, OfOneKeyIsItsValue) {
  OpContext ctx(TestBackend());
  Attention a(DType::kF32, Layout::Of(4, 1), 2, 8, true);
  a.Forward(ctx);
  EXPECT_TRUE(BitwiseEqual(a.y, a.v));
}

TEST(SoftmaxAttention, AveragesTheValuesOfEqualKeys) {
  OpContext ctx(Backend::kReference);
  Attention a(kF64, Layout::Of(1, 30), 1, 4, true);
  ela::testing::Fill(a.k, 0.5);
  a.Forward(ctx);
  for (int64_t i = 0; i < 30; ++i) {
    double mean = 0;
    for (int64_t j = 0; j <= i; ++j) mean += Get(a.v, j * 4) / static_cast<double>(i + 1);
    EXPECT_NEAR(Get(a.y, i * 4), mean, 1e-14);
  }
}

/// Outputs of a run whose keys are folded in blocks that start at `cuts`, in the order given.
std::vector<Buffer> InBlocks(Backend backend, const Layout& layout, bool causal,
                             const std::vector<std::pair<int64_t, int64_t>>& blocks) {
  OpContext ctx(backend);
  Attention a(FloatOf(backend), layout, 2, 8, causal);
  for (const auto& [begin, end] : blocks) a.Forward(ctx, 0, a.rows, begin, end);
  RowDots(ctx, a.delta, a.dy, a.y);
  for (const auto& [begin, end] : blocks) a.Backward(ctx, 0, a.rows, begin, end);
  return Outputs(std::move(a.y), std::move(a.lse), std::move(a.dq), std::move(a.dk),
                 std::move(a.dv));
}

void ExpectNear(const std::vector<Buffer>& actual, const std::vector<Buffer>& expected,
                double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = RelativeError(actual[i], expected[i]);
    EXPECT_TRUE(error <= tolerance) << "output " << i << ": error " << error;
  }
}

TEST(SoftmaxAttention, MergesKeyBlocksInAnySplitAndOrder) {
  const Layout layout = Layout::Of(1, 130, {40, 41, 100});
  const std::vector<std::vector<std::pair<int64_t, int64_t>>> splits = {
      {{0, 65}, {65, 130}},
      {{65, 130}, {0, 65}},
      {{0, 1}, {1, 1}, {1, 129}, {129, 130}},
      {{100, 130}, {0, 40}, {41, 100}, {40, 41}}};
  for (const Backend backend : {Backend::kReference, TestBackend()}) {
    for (const bool causal : {true, false}) {
      const auto whole = InBlocks(backend, layout, causal, {{0, 130}});
      for (const auto& split : splits) {
        ExpectNear(InBlocks(backend, layout, causal, split), whole,
                   backend != Backend::kReference ? 2e-6 : 1e-13);
      }
    }
  }
}

/// The result over keys [0, cut) merged with that over the rest.
OpRun Merged(const Layout& layout, int64_t cut) {
  return [=](const Context& ctx, DType dtype) {
    Attention a(dtype, layout, 2, 8, true), b(dtype, layout, 2, 8, true);
    a.Forward(ctx, 0, a.rows, 0, cut);
    b.Forward(ctx, 0, b.rows, cut, b.rows);
    SoftmaxAttentionMerge(ctx, a.y, a.lse, b.y, b.lse);
    return Outputs(std::move(a.y), std::move(a.lse));
  };
}

TEST(SoftmaxAttention, MergesResultsOverTwoSetsOfKeys) {
  const Layout layout = Layout::Of(1, 130, {40, 41, 100});
  for (const int64_t cut : {0, 1, 41, 100, 130}) {
    ExpectGoodOnCpu(Merged(layout, cut), kFloatError, kBf16Error);
    OpContext ctx(Backend::kReference);
    Attention whole(kF64, layout, 2, 8, true);
    whole.Forward(ctx);
    OpContext other(Backend::kReference);
    const std::vector<Buffer> merged = Merged(layout, cut)(other, kF64);
    EXPECT_LE(RelativeError(merged[0], whole.y), 1e-14);
    EXPECT_LE(RelativeError(merged[1], whole.lse), 1e-14);
  }
}

TEST(SoftmaxAttention, TakesQueriesInAnySplit) {
  const Layout layout = Layout::Of(2, 100, {30});
  OpContext ctx(TestBackend());
  Attention whole(DType::kF32, layout, 2, 8, true), parts(DType::kF32, layout, 2, 8, true);
  whole.Forward(ctx);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 64}, {64, 128}, {128, 200}}) {
    parts.Forward(ctx, begin, end, 0, 200);
  }
  EXPECT_TRUE(BitwiseEqual(parts.y, whole.y));
  EXPECT_TRUE(BitwiseEqual(parts.lse, whole.lse));
}

TEST(SoftmaxAttention, RowsThatMeetNothingKeepTheirBits) {
  for (const DType dtype : {DType::kF32, DType::kBf16, kF64}) {
    OpContext ctx(dtype == kF64 ? Backend::kReference : TestBackend());
    Attention a(dtype, Layout::Of(2, 40), 2, 8, true);
    ela::testing::Copy(a.y, Input(dtype, {80, 2, 8}, 9));
    Buffer before(dtype, {80, 2, 8});
    ela::testing::Copy(before, a.y);
    a.Forward(ctx, 0, 80, 30, 40);  // the first sequence's last keys
    const Tensor after = a.y.host(), y = before.host();
    EXPECT_TRUE(BitwiseEqual(after.Rows(0, 30), y.Rows(0, 30)));
    EXPECT_TRUE(BitwiseEqual(after.Rows(40, 80), y.Rows(40, 80)));
    EXPECT_FALSE(BitwiseEqual(after.Rows(30, 40), y.Rows(30, 40)));
    EXPECT_EQ(Get(a.lse, 0), -std::numeric_limits<double>::infinity());
  }
}

TEST(SoftmaxAttention, FutureKeysChangeNoBit) {
  OpContext ctx(TestBackend());
  const Layout layout = Layout::Of(1, 300);
  Attention a(DType::kF32, layout, 2, 8, true), b(DType::kF32, layout, 2, 8, true);
  for (int64_t i = 201 * 16; i < 300 * 16; ++i) {
    Set(b.k, i, 1e4);
    Set(b.v, i, -7);
  }
  a.Forward(ctx);
  b.Forward(ctx);
  const Tensor y = a.y.host(), other = b.y.host();
  EXPECT_TRUE(BitwiseEqual(y.Rows(0, 201), other.Rows(0, 201)));
  EXPECT_FALSE(BitwiseEqual(y.Rows(201, 300), other.Rows(201, 300)));
}

TEST(SoftmaxAttention, NotANumberReachesTheRowsThatSeeItAlone) {
  OpContext ctx(TestBackend());
  Attention a(DType::kF32, Layout::Of(1, 100), 1, 8, true);
  Set(a.k, 50 * 8 + 3, std::numeric_limits<double>::quiet_NaN());
  a.Forward(ctx);
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(std::isfinite(Get(a.y, i * 8)), i < 50) << i;
  }
}

TEST(SoftmaxAttention, ReadsAndWritesStridedRows) {
  OpContext ctx(TestBackend());
  const Layout layout = Layout::Of(1, 80);
  Attention a(DType::kF32, layout, 2, 8, true);
  a.Forward(ctx);
  a.Backward(ctx);
  Buffer qkv(DType::kF32, {80, 48}, 50), dqkv(DType::kF32, {80, 48}, 50);
  ela::testing::Fill(dqkv, 0);
  const auto part = [](const Tensor& x, int64_t i) {
    return x.Columns(16 * i, 16 * (i + 1)).View({80, 2, 8});
  };
  const auto head = [&](const Buffer& x, int64_t i) { return part(x.tensor(), i); };
  int64_t i = 0;
  for (const Buffer* x : {&a.q, &a.k, &a.v}) ela::testing::Copy(part(qkv.host(), i++), *x);
  Buffer y = ZeroBuffer(DType::kF32, {80, 2, 8}), lse(DType::kF32, {80, 2});
  ela::testing::Fill(lse, -std::numeric_limits<double>::infinity());
  SoftmaxAttentionForward(ctx, y, lse, head(qkv, 0), head(qkv, 1), head(qkv, 2), a.documents,
                          a.documents, a.positions, a.positions, a.config);
  SoftmaxAttentionBackward(ctx, head(dqkv, 0), head(dqkv, 1), head(dqkv, 2), a.dy, head(qkv, 0),
                           head(qkv, 1), head(qkv, 2), lse, a.delta, a.documents, a.documents,
                           a.positions, a.positions, a.config);
  EXPECT_TRUE(BitwiseEqual(y, a.y));
  i = 0;
  for (const Buffer* x : {&a.dq, &a.dk, &a.dv}) {
    EXPECT_TRUE(BitwiseEqual(part(dqkv.host(), i++), *x));
  }
}

TEST(SoftmaxAttention, BackwardAddsToTheGradients) {
  OpContext ctx(TestBackend());
  Attention once(DType::kF32, Layout::Of(1, 70), 2, 8, true);
  Attention twice(DType::kF32, Layout::Of(1, 70), 2, 8, true);
  for (Attention* a : {&once, &twice}) {
    a->Forward(ctx);
    a->Backward(ctx);
  }
  twice.Backward(ctx);
  for (const auto& [two, one] : {std::pair{&twice.dq, &once.dq}, {&twice.dk, &once.dk}}) {
    std::vector<double> doubled = Values(*one);
    for (double& x : doubled) x *= 2;
    EXPECT_LE(RelativeError(*two, doubled), 1e-6);
  }
}

TEST(SoftmaxAttention, FloatGradientsOfBf16InputsAreNotRounded) {
  const Layout layout = Layout::Of(1, 90);
  Attention a(DType::kBf16, layout, 2, 8, true), b(kF64, layout, 2, 8, true);
  {
    OpContext exact(Backend::kReference);
    b.Forward(exact);
    b.Backward(exact);
  }
  OpContext ctx(TestBackend());
  Buffer y = ZeroBuffer(DType::kF32, {90, 2, 8}), dq = ZeroBuffer(DType::kF32, {90, 2, 8});
  Buffer dk = ZeroBuffer(DType::kF32, {90, 2, 8}), dv = ZeroBuffer(DType::kF32, {90, 2, 8});
  SoftmaxAttentionForward(ctx, y, a.lse, a.q, a.k, a.v, a.documents, a.documents, a.positions,
                          a.positions, a.config);
  ela::testing::Copy(a.delta, b.delta);
  SoftmaxAttentionBackward(ctx, dq, dk, dv, a.dy, a.q, a.k, a.v, a.lse, a.delta, a.documents,
                           a.documents, a.positions, a.positions, a.config);
  EXPECT_LE(RelativeError(y, b.y), 2e-6);
  EXPECT_LE(RelativeError(dq, b.dq), 1e-5);
  EXPECT_LE(RelativeError(dk, b.dk), 1e-5);
  EXPECT_LE(RelativeError(dv, b.dv), 1e-5);
}

TEST(SoftmaxAttention, BackwardMatchesJacobian) {
  for (const bool causal : {true, false}) {
    OpContext ctx(Backend::kReference);
    Attention a(kF64, Layout::Of(2, 5, {2}), 2, 3, causal);
    const auto loss = [&] {
      ela::testing::Fill(a.y, 0);
      ela::testing::Fill(a.lse, -std::numeric_limits<double>::infinity());
      a.Forward(ctx);
      return Dot(a.y, a.dy);
    };
    loss();
    a.Backward(ctx);
    ExpectGradient(a.dq, a.q, loss);
    ExpectGradient(a.dk, a.k, loss);
    ExpectGradient(a.dv, a.v, loss);
  }
}

}  // namespace
}  // namespace ela::kernels
