#include "kernels/loss/loss.h"

#include "kernels/loss/tiles.h"
#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF64 = DType::kF64;

/// Random targets, each third one missing.
Buffer Targets(int64_t tokens, int64_t vocabulary) {
  std::vector<int32_t> targets = RandomIntegers(tokens, static_cast<int32_t>(vocabulary), 9);
  for (size_t t = 1; t < targets.size(); t += 3) targets[t] = -1;
  return Integers({tokens}, targets);
}

OpRun LossAndGradients(int64_t tokens, int64_t vocabulary, int64_t d, double x_scale = 1) {
  return [=](const Context& ctx, DType dtype) {
    Buffer x = Input(dtype, {tokens, d}, 1, x_scale), table = Input(dtype, {vocabulary, d}, 2, 0.2);
    Buffer loss = ZeroBuffer(kF64, {1}), dx(dtype, {tokens, d});
    Buffer dtable = Input(StatisticOf(dtype), {vocabulary, d}, 3);
    Buffer logprob(StatisticOf(dtype), {tokens});
    const Buffer targets = Targets(tokens, vocabulary);
    LossForwardBackward(ctx, loss, dx, dtable, x, table, targets, 0.25);
    TokenLogprobs(ctx, logprob, x, table, targets);
    return Outputs(std::move(loss), std::move(dx), std::move(dtable), std::move(logprob));
  };
}

TEST(Loss, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(LossAndGradients(0, 5, 8));
  ExpectGoodOnCpu(LossAndGradients(1, 1, 1));
  ExpectGoodOnCpu(LossAndGradients(63, 65, 33));
  ExpectGoodOnCpu(LossAndGradients(65, 1001, 16));
  ExpectGoodOnCpu(LossAndGradients(33, 4104, 16));
  ExpectGoodOnCpu(LossAndGradients(6, 32768, 4));  // as many logits as a block keeps on CUDA
  ExpectGoodOnCpu(LossAndGradients(6, 70001, 4));  // more
}

// 3000 * 700 logits take several tiles of rows that hold the whole vocabulary; 300 * 20,000 take
// chunks of the vocabulary, whose logits are computed twice.
// On CUDA the gradients of bf16 logits are rounded to bf16 before they meet the table and x.
TEST(Loss, IsRightAcrossTilesOfRows) {
  const double bf16 = TestBackend() == Backend::kCuda ? 2 * kBf16Tolerance : kBf16Tolerance;
  ExpectGoodOnCpu(LossAndGradients(3000, 700, 4), kFloatTolerance, bf16);
}
TEST(Loss, IsRightAcrossChunksOfTheVocabulary) { ExpectGoodOnCpu(LossAndGradients(300, 20000, 3)); }

TEST(Loss, IsRightForHugeLogits) {
  ExpectMatchesReference(DType::kF32, 1e-5, LossAndGradients(20, 65, 8, 1000));
}

TEST(Loss, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  Buffer x = Input(kF64, {4, 3}, 1), table = Input(kF64, {5, 3}, 2);
  Buffer dx(kF64, {4, 3}), dtable = ZeroBuffer(kF64, {5, 3}), sum = ZeroBuffer(kF64, {1});
  const Buffer targets = Integers({4}, {4, -1, 0, 0});
  LossForwardBackward(ctx, sum, dx, dtable, x, table, targets, 0.5);
  const auto loss = [&] {
    Buffer value = ZeroBuffer(kF64, {1});
    LossForwardBackward(ctx, value, Tensor(), Tensor(), x, table, targets, 0.5);
    return 0.5 * Get(value, 0);
  };
  ExpectGradient(dx, x, loss);
  ExpectGradient(dtable, table, loss);
}

TEST(Loss, UniformLogitsCostTheLogOfTheVocabulary) {
  OpContext ctx(TestBackend());
  Buffer x = ZeroBuffer(DType::kF32, {6, 4}), table = Input(DType::kF32, {100, 4}, 1);
  Buffer sum = ZeroBuffer(kF64, {1});
  const Buffer targets = Integers({6}, {1, 2, 3, 4, 5, 99});
  LossForwardBackward(ctx, sum, Tensor(), Tensor(), x, table, targets, 1);
  EXPECT_NEAR(Get(sum, 0), 6 * std::log(100.0), 1e-5);
}

TEST(Loss, RowsWithoutTargetGetNoGradient) {
  OpContext ctx(TestBackend());
  Buffer x = Input(DType::kF32, {3, 4}, 1), table = Input(DType::kF32, {9, 4}, 2);
  Buffer sum = ZeroBuffer(kF64, {1}), dx(DType::kF32, {3, 4}),
         dtable = ZeroBuffer(DType::kF32, {9, 4});
  LossForwardBackward(ctx, sum, dx, dtable, x, table, Integers({3}, {-1, -1, -1}), 1);
  EXPECT_EQ(Get(sum, 0), 0.0);
  EXPECT_EQ(RelativeError(dx, ZeroBuffer(DType::kF32, {3, 4})), 0.0);
  EXPECT_EQ(RelativeError(dtable, ZeroBuffer(DType::kF32, {9, 4})), 0.0);
}

TEST(Loss, NaNReachesTheLossAndTheGradient) {
  OpContext ctx(TestBackend());
  Buffer x = Input(DType::kF32, {3, 4}, 1), table = Input(DType::kF32, {9, 4}, 2);
  Buffer sum = ZeroBuffer(kF64, {1}), dx(DType::kF32, {3, 4}),
         dtable = ZeroBuffer(DType::kF32, {9, 4});
  Set(x, 5, NAN);
  LossForwardBackward(ctx, sum, dx, dtable, x, table, Integers({3}, {0, 1, 2}), 1);
  EXPECT_TRUE(std::isnan(Get(sum, 0)));
  EXPECT_TRUE(std::isnan(Get(dx, 4)));
  EXPECT_TRUE(std::isnan(Get(dtable, 0)));
}

TEST(Loss, ScratchDoesNotGrowWithTheProduct) {
  OpContext ctx(Backend::kCpu);
  LossAndGradients(700, 40000, 4)(ctx, DType::kF32);
  EXPECT_LE(ctx.arena().peak_bytes(), size_t{5} << 20);
}

TEST(Loss, TilesOfADeviceTakeAsMuchAsTheyMay) {
  for (const int64_t element : {2, 4}) {
    for (const int64_t v : {1, 700, 8000, 32000, 50257, 151936, 262144, 300000, 1 << 20}) {
      SCOPED_TRACE(v);
      const LossTiles tiles = LossTilesFor(int64_t{1} << 40, v, element);
      EXPECT_TRUE(tiles.stride % 8 == 0 && tiles.stride >= v && tiles.stride < v + 8);
      EXPECT_EQ(tiles.gradient_rows % tiles.logit_rows, 0);
      const int64_t bytes = (tiles.logit_rows * 4 + tiles.gradient_rows * element) * tiles.stride;
      EXPECT_LE(bytes, std::max(int64_t{384} << 20, 128 * 6 * v));
      EXPECT_GE(bytes, int64_t{256} << 20);
    }
  }
  const LossTiles small = LossTilesFor(100, 32000, 2);
  EXPECT_TRUE(small.logit_rows == 100 && small.gradient_rows == 100);
}

TEST(LossDeathTest, RefusesATargetOutsideTheVocabulary) {
  OpContext ctx(Backend::kCpu);
  Buffer x = Input(DType::kF32, {1, 4}, 1), table = Input(DType::kF32, {9, 4}, 2);
  Buffer logprob(DType::kF32, {1});
  EXPECT_DEATH(TokenLogprobs(ctx, logprob, x, table, Integers({1}, {9})), "target 9 of 9");
}

}  // namespace
}  // namespace ela::kernels
