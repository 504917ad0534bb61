#include "kernels/elementwise/elementwise.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF32 = DType::kF32;

OpRun All(int64_t rows, int64_t columns, int64_t stride) {
  return [=](const Context& ctx, DType dtype) {
    Buffer a = Input(dtype, {rows, columns}, 1), b(dtype, {rows, columns}, stride);
    Buffer sum(dtype, {rows, columns}), copy(dtype, {rows, columns}, stride);
    Buffer wide(StatisticOf(dtype), {rows, columns});
    testing::Copy(b, Input(dtype, {rows, columns}, 2));
    Add(ctx, sum, a, b);
    Copy(ctx, copy, sum);
    Scale(ctx, copy, 0.375);
    Copy(ctx, wide, copy);
    Fill(ctx, b, 1.25);
    return Outputs(std::move(sum), std::move(copy), std::move(wide), std::move(b));
  };
}

TEST(Elementwise, IsRightOnAwkwardShapes) {
  // bf16 rounds the sum and then the scaled sum.
  ExpectGoodOnCpu(All(0, 3, 5), kFloatTolerance, 2 * kBf16Tolerance);
  ExpectGoodOnCpu(All(1, 1, 0), kFloatTolerance, 2 * kBf16Tolerance);
  ExpectGoodOnCpu(All(63, 65, 70), kFloatTolerance, 2 * kBf16Tolerance);
  ExpectGoodOnCpu(All(3, 9001, 0), kFloatTolerance, 2 * kBf16Tolerance);
}

OpRun Dots(int64_t rows, int64_t heads, int64_t d, int64_t stride) {
  return [=](const Context& ctx, DType dtype) {
    Buffer a(dtype, {rows, heads, d}, stride), b = Input(dtype, {rows, heads, d}, 2);
    Buffer dots(StatisticOf(dtype), {rows, heads});
    testing::Copy(a, Input(dtype, {rows, heads, d}, 1));
    RowDots(ctx, dots, a, b);
    return Outputs(std::move(dots));
  };
}

TEST(RowDots, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(Dots(0, 2, 3, 0));
  ExpectGoodOnCpu(Dots(1, 1, 1, 0));
  ExpectGoodOnCpu(Dots(63, 3, 65, 300));
  ExpectGoodOnCpu(Dots(2, 1, 5000, 0));
}

TEST(Elementwise, AddsInPlace) {
  OpContext ctx(TestBackend());
  Buffer a = Input(kF32, {3, 5}, 1), b = Input(kF32, {3, 5}, 2), y(kF32, {3, 5});
  Add(ctx, y, a, b);
  Add(ctx, a, a, b);
  EXPECT_TRUE(BitwiseEqual(a, y));
}

TEST(Elementwise, FillsAndCopiesIntegersAndDoubles) {
  OpContext ctx(TestBackend());
  for (DType dtype : {DType::kI32, DType::kI64, DType::kF64}) {
    Buffer x(dtype, {3, 5}), y(dtype, {3, 5});
    Fill(ctx, x, 7);
    Copy(ctx, y, x);
    EXPECT_EQ(Values(y), std::vector<double>(15, 7.0));
  }
}

TEST(Elementwise, RoundsToTheNearestEvenBf16) {
  OpContext ctx(TestBackend());
  Buffer x = Input(kF32, {4}, 1), y(DType::kBf16, {4});
  Set(x, 0, 1 + 0x1p-8);            // halfway: to even, down
  Set(x, 1, 1 + 3 * 0x1p-8);        // halfway: to even, up
  Set(x, 2, 1 + 0x1p-8 + 0x1p-20);  // above halfway
  Set(x, 3, NAN);
  Copy(ctx, y, x);
  EXPECT_EQ(Get(y, 0), 1);
  EXPECT_EQ(Get(y, 1), 1 + 4 * 0x1p-8);
  EXPECT_EQ(Get(y, 2), 1 + 2 * 0x1p-8);
  EXPECT_TRUE(std::isnan(Get(y, 3)));
}

TEST(Elementwise, FindsTheFirstOfTheLargest) {
  for (const DType dtype : {kF32, DType::kBf16}) {
    for (const int64_t n : {1, 31, 64, 2000, 5003}) {
      OpContext ctx(TestBackend());
      Buffer x = Input(dtype, {4, n}, 1), index(DType::kI32, {4});
      for (int64_t i = 0; i < n; ++i) Set(x, 2 * n + i, i < n / 2 ? NAN : -INFINITY);
      for (int64_t i = 0; i < n; ++i) Set(x, 3 * n + i, NAN);
      Set(x, n - 1, 50);                             // row 0: at the end
      Set(x, n + n / 3, 60), Set(x, 2 * n - 1, 60);  // row 1: twice
      RowArgmax(ctx, index, x);
      EXPECT_EQ(Values(index),
                (std::vector<double>{static_cast<double>(n - 1), static_cast<double>(n / 3),
                                     static_cast<double>(n / 2), 0}))
          << n;
    }
  }
}

}  // namespace
}  // namespace ela::kernels
