// The loss on CUDA by tiles far smaller than its own, so that few rows fill several of each kind,
// and where the last of each is a part.
#include "kernels/loss/loss.h"

#include "kernels/loss/tiles.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/support/backend_testing.h"

namespace ela::kernels::cuda {
namespace {

using namespace ela::testing;  // NOLINT

class LossOnCuda : public device::CudaTest {};

/// 70 rows, each third one without a target: loss, dx, dtable.
std::vector<Buffer> Run(Backend backend, DType dtype, int64_t vocabulary, const LossTiles& tiles) {
  constexpr int64_t kTokens = 70, kWidth = 16;
  OpContext ctx(backend);
  Buffer x = Input(dtype, {kTokens, kWidth}, 1), table = Input(dtype, {vocabulary, kWidth}, 2, 0.2);
  Buffer loss = ZeroBuffer(DType::kF64, {1}), dx(dtype, {kTokens, kWidth});
  Buffer dtable = Input(StatisticOf(dtype), {vocabulary, kWidth}, 3);
  std::vector<int32_t> targets = RandomIntegers(kTokens, static_cast<int32_t>(vocabulary), 9);
  for (size_t t = 1; t < targets.size(); t += 3) targets[t] = -1;
  if (backend == Backend::kCuda) {
    LossByTiles(ctx, loss, dx, dtable, x, table, Integers({kTokens}, targets), 0.25, tiles);
  } else {
    LossForwardBackward(ctx, loss, dx, dtable, x, table, Integers({kTokens}, targets), 0.25);
  }
  return Outputs(std::move(loss), std::move(dx), std::move(dtable));
}

/// In float, and in bf16, whose gradients are rounded before they meet the table and x; the same
/// bits twice.
void ExpectRight(int64_t vocabulary, const LossTiles& tiles) {
  SCOPED_TRACE(vocabulary);
  const std::vector<Buffer> expected = Run(Backend::kReference, DType::kF64, vocabulary, tiles);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const double tolerance = dtype == DType::kF32 ? kFloatTolerance : 2 * kBf16Tolerance;
    const std::vector<Buffer> actual = Run(Backend::kCuda, dtype, vocabulary, tiles);
    const std::vector<Buffer> again = Run(Backend::kCuda, dtype, vocabulary, tiles);
    for (size_t i = 0; i < actual.size(); ++i) {
      const double error = RelativeError(actual[i], expected[i]);
      EXPECT_TRUE(error <= tolerance) << "output " << i << ": error " << error;
      EXPECT_TRUE(BitwiseEqual(actual[i], again[i])) << "output " << i;
    }
  }
}

TEST_F(LossOnCuda, IsRightBySeveralTilesOfLogitsInEachOfGradients) {
  ExpectRight(65, {.stride = 72, .logit_rows = 16, .gradient_rows = 48});
  ExpectRight(1000, {.stride = 1000, .logit_rows = 16, .gradient_rows = 48});
  ExpectRight(1000, {.stride = 1024, .logit_rows = 3, .gradient_rows = 7});
  ExpectRight(4097, {.stride = 4104, .logit_rows = 1, .gradient_rows = 70});
}

TEST_F(LossOnCuda, IsRightForRowsLongerThanABlockKeeps) {
  ExpectRight(32769, {.stride = 32776, .logit_rows = 32, .gradient_rows = 64});
}

TEST_F(LossOnCuda, IsRightByOneTileOfEach) {
  ExpectRight(32768, {.stride = 32768, .logit_rows = 70, .gradient_rows = 70});
}

}  // namespace
}  // namespace ela::kernels::cuda
