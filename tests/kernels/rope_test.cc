#include "kernels/rope/rope.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

OpRun Turn(int64_t rows, int64_t heads, int64_t head_dim, int32_t largest, bool inverse) {
  return [=](const Context& ctx, DType dtype) {
    Buffer x = Input(dtype, {rows, heads, head_dim}, 1);
    const Buffer positions = Integers({rows}, RandomIntegers(rows, largest, 2));
    Rope(ctx, x, positions, 10000, inverse);
    return Outputs(std::move(x));
  };
}

TEST(Rope, IsRightOnAwkwardShapes) {
  for (bool inverse : {false, true}) {
    ExpectGoodOnCpu(Turn(0, 2, 8, 100, inverse));
    ExpectGoodOnCpu(Turn(1, 1, 2, 100, inverse));
    ExpectGoodOnCpu(Turn(63, 3, 34, 5000, inverse));
  }
}

TEST(Rope, IsRightAtPositionsInTheMillions) { ExpectGoodOnCpu(Turn(65, 2, 64, 8'000'000, false)); }

TEST(Rope, RowsMayBeStrided) {
  ExpectGoodOnCpu([](const Context& ctx, DType dtype) {
    Buffer x(dtype, {5, 2, 6}, 40);
    testing::Copy(x, Input(dtype, {5, 2, 6}, 1));
    Rope(ctx, x, Integers({5}, {0, 1, 2, 7, 9}), 10000, false);
    return Outputs(std::move(x));
  });
}

TEST(Rope, PositionZeroChangesNothing) {
  OpContext ctx(TestBackend());
  Buffer x = Input(DType::kF32, {2, 2, 6}, 1);
  Rope(ctx, x, Integers({2}, {0, 0}), 10000, false);
  EXPECT_TRUE(BitwiseEqual(x, Input(DType::kF32, {2, 2, 6}, 1)));
}

TEST(Rope, TurnsTheFirstPairByThePosition) {
  OpContext ctx(Backend::kReference);
  Buffer x = ZeroBuffer(DType::kF64, {1, 1, 4});
  Set(x, 0, 1);
  Set(x, 2, 1);
  Rope(ctx, x, Integers({1}, {3}), 10000, false);
  const std::vector<double> expected = {std::cos(3.0), std::sin(3.0), std::cos(0.03),
                                        std::sin(0.03)};
  EXPECT_LE(RelativeError(x, expected), 1e-15);
}

// A rotation is orthogonal: its transpose, the backward pass, is its inverse.
TEST(Rope, InverseIsTheBackwardPass) {
  OpContext ctx(Backend::kReference);
  const Buffer positions = Integers({3}, {1, 5, 9});
  Buffer x = Input(DType::kF64, {3, 2, 4}, 1), dy = Input(DType::kF64, {3, 2, 4}, 2);
  const auto loss = [&] {
    Buffer y = ZeroBuffer(DType::kF64, {3, 2, 4});
    testing::Copy(y, x);
    Rope(ctx, y, positions, 10000, false);
    return Dot(y, dy);
  };
  Buffer dx = Input(DType::kF64, {3, 2, 4}, 2);
  Rope(ctx, dx, positions, 10000, true);
  ExpectGradient(dx, x, loss);
}

}  // namespace
}  // namespace ela::kernels
