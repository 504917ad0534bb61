// Softmax attention of one token of each sequence over a cache of keys and values.
#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

/// Sequences whose caches hold positions[b] tokens, the rest of the room poisoned.
struct Decoding {
  SoftmaxAttentionConfig config;
  int64_t sequences, room;
  Buffer keys, values, qkv, y, at;

  Decoding(DType type, const std::vector<int32_t>& positions, int64_t capacity, int64_t heads,
           int64_t d, double scale = 1)
      : config{heads, d, true},
        sequences(static_cast<int64_t>(positions.size())),
        room(capacity),
        keys(type, {sequences, capacity, heads, d}),
        values(type, {sequences, capacity, heads, d}),
        qkv(Input(type, {sequences, 3 * heads * d}, 3, scale)),
        y(type, {sequences, heads, d}),
        at(Integers({sequences}, positions)) {
    const int64_t width = heads * d;
    int64_t rows = 0;
    for (const int32_t position : positions) rows = std::max<int64_t>(rows, position);
    const Buffer seen = Input(type, {7 * sequences + rows, 2 * width}, 4, scale);
    for (int64_t b = 0; b < sequences; ++b) {
      for (int64_t j = 0; j < positions[static_cast<size_t>(b)]; ++j) {
        for (int64_t i = 0; i < width; ++i) {
          const int64_t from = (7 * b + j) * 2 * width + i;
          Set(keys, (b * room + j) * width + i, Get(seen, from));
          Set(values, (b * room + j) * width + i, Get(seen, from + width));
        }
      }
    }
  }
  void Run(const Context& ctx) {
    const int64_t width = config.num_heads * config.head_dim;
    const Tensor all = qkv;
    const auto heads = [&](int64_t i) {
      return all.Columns(i * width, (i + 1) * width)
          .View({sequences, config.num_heads, config.head_dim});
    };
    SoftmaxAttentionDecode(ctx, y, keys, values, heads(0), heads(1), heads(2), at, config);
  }
};

OpRun Decode(const std::vector<int32_t>& positions, int64_t room, int64_t heads, int64_t d,
             double scale = 1) {
  return [=](const Context& ctx, DType dtype) {
    Decoding decoding(dtype, positions, room, heads, d, scale);
    decoding.Run(ctx);
    return Outputs(std::move(decoding.y));
  };
}

void ExpectGood(const OpRun& run) { ExpectGoodOnCpu(run, 1e-5, kBf16Tolerance); }

TEST(SoftmaxDecode, IsRightOnAwkwardShapes) {
  ExpectGood(Decode({}, 1, 1, 8));
  ExpectGood(Decode({0}, 1, 1, 1));
  ExpectGood(Decode({4, 0, 3}, 5, 2, 3));
  ExpectGood(Decode({255, 256, 257, 511}, 512, 2, 40));
  ExpectGood(Decode({1000, 31, 32}, 1001, 3, 64));
  ExpectGood(Decode({63, 700}, 900, 1, 128));
  ExpectGood(Decode({300}, 300 + 1, 2, 256));
}

TEST(SoftmaxDecode, IsRightWhereOneKeyHasAllTheWeight) {
  ExpectGood(Decode({600, 20}, 601, 2, 16, /*scale=*/30));
}

TEST(SoftmaxDecode, PutsTheTokenIntoTheCacheAndNothingElse) {
  OpContext ctx(TestBackend());
  const std::vector<int32_t> positions = {2, 0};
  Decoding before(DType::kF32, positions, 4, 2, 3), after(DType::kF32, positions, 4, 2, 3);
  after.Run(ctx);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t i = 0; i < 4 * 6; ++i) {
      const int64_t at = b * 4 * 6 + i;
      const bool own = i / 6 == positions[static_cast<size_t>(b)];
      const double key = own ? Get(after.qkv, b * 18 + 6 + i % 6) : Get(before.keys, at);
      const double value = own ? Get(after.qkv, b * 18 + 12 + i % 6) : Get(before.values, at);
      EXPECT_TRUE(Get(after.keys, at) == key || std::isnan(key)) << b << ", " << i;
      EXPECT_TRUE(Get(after.values, at) == value || std::isnan(value)) << b << ", " << i;
      EXPECT_EQ(std::isnan(Get(after.keys, at)), std::isnan(key));
    }
  }
}

TEST(SoftmaxDecode, GivesTheSameBitsWithAnyRoom) {
  OpContext ctx(TestBackend());
  Decoding tight(DType::kF32, {700, 255}, 701, 2, 24), wide(DType::kF32, {700, 255}, 3000, 2, 24);
  tight.Run(ctx);
  wide.Run(ctx);
  EXPECT_TRUE(BitwiseEqual(tight.y, wide.y));
}

TEST(SoftmaxDecode, GivesASequenceTheSameBitsBesideOthers) {
  OpContext ctx(TestBackend());
  Decoding alone(DType::kF32, {300}, 400, 2, 24), beside(DType::kF32, {300, 5, 399}, 400, 2, 24);
  alone.Run(ctx);
  beside.Run(ctx);
  for (int64_t i = 0; i < 2 * 24; ++i) EXPECT_EQ(Get(alone.y, i), Get(beside.y, i)) << i;
}

}  // namespace
}  // namespace ela::kernels
