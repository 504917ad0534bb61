#include "kernels/rms_norm/rms_norm.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF64 = DType::kF64;

OpRun ForwardBackward(int64_t rows, int64_t d, double scale = 1) {
  return [=](const Context& ctx, DType dtype) {
    const DType statistic = StatisticOf(dtype);
    Buffer x = Input(dtype, {rows, d}, 1, scale), gain = Input(dtype, {d}, 2);
    Buffer dy = Input(dtype, {rows, d}, 3), dgain = Input(statistic, {d}, 4);
    Buffer y(dtype, {rows, d}), rstd(statistic, {rows}), dx(dtype, {rows, d});
    Buffer added = Input(dtype, {rows, d}, 5), sum(dtype, {rows, d});
    RmsNormForward(ctx, y, rstd, x, gain);
    RmsNormBackward(ctx, dx, dgain, dy, x, gain, rstd);
    RmsNormBackward(ctx, sum, dgain, dy, x, gain, rstd, added);
    return Outputs(std::move(y), std::move(rstd), std::move(dx), std::move(sum), std::move(dgain));
  };
}

TEST(RmsNorm, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(ForwardBackward(0, 8));
  ExpectGoodOnCpu(ForwardBackward(1, 3));
  ExpectGoodOnCpu(ForwardBackward(63, 65));
  ExpectGoodOnCpu(ForwardBackward(1100, 17));
}

// Rows of a warp, of several warps and the longest; more rows than a launch takes at once.
TEST(RmsNorm, IsRightForLongAndForManyRows) {
  ExpectGoodOnCpu(ForwardBackward(41, 1024));
  ExpectGoodOnCpu(ForwardBackward(41, 1000));
  ExpectGoodOnCpu(ForwardBackward(41, 1031));
  ExpectGoodOnCpu(ForwardBackward(800, 1032));
  ExpectGoodOnCpu(ForwardBackward(3, 12224));
  ExpectGoodOnCpu(ForwardBackward(1700, 24));
}

TEST(RmsNorm, IsRightForTinyAndHugeRows) {
  ExpectGoodOnCpu(ForwardBackward(9, 65, 1e-6));
  ExpectGoodOnCpu(ForwardBackward(9, 65, 1e6));
}

TEST(RmsNorm, RowsOfZerosGiveZeros) {
  OpContext ctx(TestBackend());
  Buffer x = ZeroBuffer(DType::kF32, {3, 9}), gain = Input(DType::kF32, {9}, 2);
  Buffer y(DType::kF32, {3, 9}), rstd(DType::kF32, {3});
  RmsNormForward(ctx, y, rstd, x, gain);
  EXPECT_EQ(RelativeError(y, x), 0.0);
}

TEST(RmsNorm, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  Buffer x = Input(kF64, {4, 5}, 1), gain = Input(kF64, {5}, 2), dy = Input(kF64, {4, 5}, 3);
  Buffer y(kF64, {4, 5}), rstd(kF64, {4}), dx(kF64, {4, 5}), dgain = ZeroBuffer(kF64, {5});
  const auto loss = [&] {
    RmsNormForward(ctx, y, rstd, x, gain);
    return Dot(y, dy);
  };
  loss();
  RmsNormBackward(ctx, dx, dgain, dy, x, gain, rstd);
  ExpectGradient(dx, x, loss);
  ExpectGradient(dgain, gain, loss);
}

}  // namespace
}  // namespace ela::kernels
