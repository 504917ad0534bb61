#include "kernels/adamw/adamw.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

AdamWConfig Config(int64_t step = 3) {
  return {.lr = 1e-2,
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .grad_scale = 0.5,
          .step = step};
}

OpRun Update(int64_t n, int64_t step) {
  return [=](const Context& ctx, DType dtype) {
    const DType wide = StatisticOf(dtype);
    Buffer master = Input(wide, {n}, 1), m = Input(wide, {n}, 2), v = Input(wide, {n}, 3);
    for (int64_t i = 0; i < n; ++i) Set(v, i, std::fabs(Get(v, i)));
    Buffer grad = Input(wide, {n}, 4), param(dtype, {n});
    AdamWUpdate(ctx, param, master, m, v, grad, Config(step));
    return Outputs(std::move(param), std::move(master), std::move(m), std::move(v));
  };
}

TEST(AdamW, IsRightOnAwkwardLengths) {
  for (int64_t n : {0, 1, 63, 65, 40000}) ExpectGoodOnCpu(Update(n, 3));
}

TEST(AdamW, CorrectsTheBiasOfTheFirstStep) { ExpectGoodOnCpu(Update(100, 1)); }

TEST(AdamW, MovesAgainstTheGradientByTheRateAtFirst) {
  OpContext ctx(TestBackend());
  Buffer w = ZeroBuffer(DType::kF32, {2}), m = ZeroBuffer(DType::kF32, {2});
  Buffer v = ZeroBuffer(DType::kF32, {2}), grad(DType::kF32, {2});
  Set(grad, 0, 7);
  Set(grad, 1, -1e-3);
  AdamWUpdate(ctx, w, w, m, v, grad, Config(1));
  EXPECT_NEAR(Get(w, 0), -1e-2, 1e-7);
  EXPECT_NEAR(Get(w, 1), 1e-2, 1e-6);
}

TEST(AdamW, TheParameterMayBeTheMaster) {
  OpContext ctx(TestBackend());
  const std::vector<Buffer> apart = Update(99, 2)(ctx, DType::kF32);
  Buffer master = Input(DType::kF32, {99}, 1), m = Input(DType::kF32, {99}, 2);
  Buffer v = Input(DType::kF32, {99}, 3), grad = Input(DType::kF32, {99}, 4);
  for (int64_t i = 0; i < 99; ++i) Set(v, i, std::fabs(Get(v, i)));
  AdamWUpdate(ctx, master, master, m, v, grad, Config(2));
  EXPECT_TRUE(BitwiseEqual(master, apart[0]));
}

TEST(SumOfSquares, IsRightAndAdds) {
  for (int64_t n : {0, 1, 63, 200001}) {
    ExpectGoodOnCpu(
        [=](const Context& ctx, DType dtype) {
          Buffer sum = ZeroBuffer(DType::kF64, {1}), x = Input(StatisticOf(dtype), {n}, 1);
          testing::Fill(sum, 2);
          SumOfSquares(ctx, sum, x);
          return Outputs(std::move(sum));
        },
        1e-14, 1e-14);
  }
}

TEST(SumOfSquares, PassesNaNAndInfinityOn) {
  OpContext ctx(TestBackend());
  for (double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    Buffer sum = ZeroBuffer(DType::kF64, {1}), x = Input(DType::kF32, {70000}, 1);
    Set(x, 66000, bad);
    SumOfSquares(ctx, sum, x);
    EXPECT_FALSE(std::isfinite(Get(sum, 0)));
  }
}

}  // namespace
}  // namespace ela::kernels
