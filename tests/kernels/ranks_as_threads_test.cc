// Ranks are threads of one process in the trainer's tests: ops of different contexts run at the
// same time, each with threads of its own, over one BLAS.
#include <thread>

#include "kernels/linear/linear.h"
#include "kernels/loss/loss.h"
#include "kernels/rms_norm/rms_norm.h"
#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF32 = DType::kF32;

/// A few ops in a row, as a step does them.
std::vector<Buffer> Step(const Context& ctx) {
  Buffer x = Input(kF32, {300, 96}, 1), gain = Input(kF32, {96}, 2), w = Input(kF32, {64, 96}, 3);
  Buffer table = Input(kF32, {900, 64}, 4, 0.1), n(kF32, {300, 96}), rstd(kF32, {300});
  Buffer y(kF32, {300, 64}), dy(kF32, {300, 64}), dtable = ZeroBuffer(kF32, {900, 64});
  Buffer dn(kF32, {300, 96}), dw = ZeroBuffer(kF32, {64, 96}), loss = ZeroBuffer(DType::kF64, {1});
  const Buffer targets = Integers({300}, RandomIntegers(300, 900, 5));
  RmsNormForward(ctx, n, rstd, x, gain);
  LinearForward(ctx, y, n, w);
  LossForwardBackward(ctx, loss, dy, dtable, y, table, targets, 1);
  LinearBackward(ctx, dn, dw, dy, n, w);
  return Outputs(std::move(loss), std::move(dtable), std::move(dn), std::move(dw));
}

TEST(RanksAsThreads, ComputeWhatOneAloneComputes) {
  constexpr size_t kRanks = 4;
  OpContext alone(TestBackend());
  const std::vector<Buffer> expected = Step(alone);
  std::vector<std::vector<Buffer>> results(kRanks);
  std::vector<std::thread> ranks;
  for (size_t r = 0; r < kRanks; ++r) {
    ranks.emplace_back([&results, r] {
      OpContext ctx(TestBackend(), 2);
      for (int step = 0; step < 5; ++step) results[r] = Step(ctx);
      for (const Buffer& result : results[r]) result.host();  // the thread's device ends with it
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const std::vector<Buffer>& result : results) {
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(BitwiseEqual(result[i], expected[i])) << "output " << i;
    }
  }
}

}  // namespace
}  // namespace ela::kernels
