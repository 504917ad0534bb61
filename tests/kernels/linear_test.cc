#include "kernels/linear/linear.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF64 = DType::kF64;

/// With and without something added.
OpRun Forward(int64_t rows, int64_t in, int64_t out) {
  return [=](const Context& ctx, DType dtype) {
    Buffer x = Input(dtype, {rows, in}, 1), w = Input(dtype, {out, in}, 2), y(dtype, {rows, out});
    Buffer added = Input(dtype, {rows, out}, 5), sum(dtype, {rows, out});
    LinearForward(ctx, y, x, w);
    LinearForward(ctx, sum, x, w, added);
    return Outputs(std::move(y), std::move(sum));
  };
}

OpRun Backward(int64_t rows, int64_t in, int64_t out) {
  return [=](const Context& ctx, DType dtype) {
    Buffer x = Input(dtype, {rows, in}, 1), w = Input(dtype, {out, in}, 2);
    Buffer dy = Input(dtype, {rows, out}, 3), dx(dtype, {rows, in});
    Buffer dw = Input(StatisticOf(dtype), {out, in}, 4);
    LinearBackward(ctx, dx, dw, dy, x, w);
    return Outputs(std::move(dx), std::move(dw));
  };
}

std::vector<Tensor> Tensors(const std::vector<Buffer>& buffers) {
  return {buffers.begin(), buffers.end()};
}

std::vector<Buffer> Inputs(DType dtype, int64_t count, int64_t out, int64_t in, uint64_t seed) {
  std::vector<Buffer> buffers;
  for (int64_t e = 0; e < count; ++e) {
    buffers.push_back(Input(dtype, {out, in}, seed + static_cast<uint64_t>(e)));
  }
  return buffers;
}

/// Forward and backward of experts that own the given numbers of rows.
OpRun Grouped(std::vector<int64_t> offsets, int64_t in, int64_t out) {
  return [=](const Context& ctx, DType dtype) {
    const int64_t rows = offsets.back(), experts = static_cast<int64_t>(offsets.size()) - 1;
    const std::vector<Buffer> w = Inputs(dtype, experts, out, in, 10);
    std::vector<Buffer> dw = Inputs(StatisticOf(dtype), experts, out, in, 20);
    Buffer x = Input(dtype, {rows, in}, 1), dy = Input(dtype, {rows, out}, 3);
    Buffer y(dtype, {rows, out}), dx(dtype, {rows, in});
    Buffer added = Input(dtype, {rows, out}, 5), sum(dtype, {rows, out});
    GroupedLinearForward(ctx, y, x, Tensors(w), offsets);
    GroupedLinearForward(ctx, sum, x, Tensors(w), offsets, added);
    GroupedLinearBackward(ctx, dx, Tensors(dw), dy, x, Tensors(w), offsets);
    dw.push_back(std::move(y));
    dw.push_back(std::move(sum));
    dw.push_back(std::move(dx));
    return dw;
  };
}

TEST(Linear, ForwardIsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(Forward(0, 8, 8));
  ExpectGoodOnCpu(Forward(1, 63, 65));
  ExpectGoodOnCpu(Forward(65, 1, 63));
  ExpectGoodOnCpu(Forward(300, 65, 257));
}

TEST(Linear, BackwardIsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(Backward(0, 8, 8));
  ExpectGoodOnCpu(Backward(1, 63, 65));
  ExpectGoodOnCpu(Backward(65, 1, 63));
  ExpectGoodOnCpu(Backward(300, 65, 257));
}

TEST(Linear, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  Buffer x = Input(kF64, {5, 3}, 1), w = Input(kF64, {4, 3}, 2), dy = Input(kF64, {5, 4}, 3);
  Buffer y(kF64, {5, 4}), dx(kF64, {5, 3}), dw = ZeroBuffer(kF64, {4, 3});
  const auto loss = [&] {
    LinearForward(ctx, y, x, w);
    return Dot(y, dy);
  };
  LinearBackward(ctx, dx, dw, dy, x, w);
  ExpectGradient(dx, x, loss);
  ExpectGradient(dw, w, loss);
}

TEST(Linear, LeavesOutTheGradientThatIsNotWanted) {
  OpContext ctx(TestBackend());
  Buffer x = Input(DType::kF32, {5, 3}, 1), w = Input(DType::kF32, {4, 3}, 2);
  Buffer dy = Input(DType::kF32, {5, 4}, 3), dx(DType::kF32, {5, 3}), both(DType::kF32, {5, 3});
  Buffer dw = ZeroBuffer(DType::kF32, {4, 3}), dw_both = ZeroBuffer(DType::kF32, {4, 3});
  LinearBackward(ctx, both, dw_both, dy, x, w);
  LinearBackward(ctx, dx, Tensor(), dy, x, w);
  LinearBackward(ctx, Tensor(), dw, dy, x, w);
  EXPECT_TRUE(BitwiseEqual(dx, both));
  EXPECT_TRUE(BitwiseEqual(dw, dw_both));
}

TEST(Linear, RowsMayBeStrided) {
  const OpRun run = [](const Context& ctx, DType dtype) {
    Buffer x(dtype, {7, 5}, 9), dy(dtype, {7, 6}, 18), w = Input(dtype, {6, 5}, 2);
    testing::Copy(x, Input(dtype, {7, 5}, 1));
    testing::Copy(dy, Input(dtype, {7, 6}, 3));
    Buffer y(dtype, {7, 6}, 11), dx(dtype, {7, 5}, 8), sum(dtype, {7, 6}, 12);
    Buffer dw = ZeroBuffer(StatisticOf(dtype), {6, 5});
    LinearForward(ctx, y, x, w);
    LinearForward(ctx, sum, x, w, dy);
    LinearBackward(ctx, dx, dw, dy, x, w);
    return Outputs(std::move(y), std::move(sum), std::move(dx), std::move(dw));
  };
  ExpectGoodOnCpu(run);
}

TEST(GroupedLinear, IsRightWhenAnExpertHasNoRow) {
  ExpectGoodOnCpu(Grouped({0, 63, 63, 64, 129}, 17, 33));
}

TEST(GroupedLinear, IsRightWhenOneExpertHasEveryRow) {
  ExpectGoodOnCpu(Grouped({0, 0, 90, 90}, 65, 40));
}

// What follows a token must not show in its bits, though it decides how many rows its expert has.
TEST(GroupedLinear, BitsOfARowDoNotDependOnHowManyFollow) {
  constexpr int64_t kMost = 800, kOther = 60;
  OpContext ctx(Backend::kCpu);
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{16, 8}, {33, 100}, {256, 300}}) {
    const std::vector<Buffer> w = Inputs(DType::kF32, 2, out, in, 10);
    Buffer x = Input(DType::kF32, {kMost + kOther, in}, 1), all(DType::kF32, {kMost + kOther, out});
    GroupedLinearForward(ctx, all, x, Tensors(w), {0, kMost, kMost + kOther});
    for (int64_t rows : {1, 2, 11, 12, 13, 24, 25, 47, 48, 95, 200, 511, 513, 700}) {
      Buffer y(DType::kF32, {rows + kOther, out});
      GroupedLinearForward(ctx, y, x.tensor().Rows(0, rows + kOther), Tensors(w),
                           {0, rows, rows + kOther});
      EXPECT_TRUE(BitwiseEqual(y.tensor().Rows(0, rows), all.tensor().Rows(0, rows)))
          << rows << " rows of " << in;
    }
  }
}

TEST(GroupedLinear, IsRightWithoutRows) { ExpectGoodOnCpu(Grouped({0, 0, 0}, 8, 8)); }

TEST(GroupedLinear, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  const std::vector<int64_t> offsets = {0, 2, 2, 5};
  std::vector<Buffer> w = Inputs(kF64, 3, 4, 3, 10), dw;
  for (int e = 0; e < 3; ++e) dw.push_back(ZeroBuffer(kF64, {4, 3}));
  Buffer x = Input(kF64, {5, 3}, 1), dy = Input(kF64, {5, 4}, 3);
  Buffer y(kF64, {5, 4}), dx(kF64, {5, 3});
  const auto loss = [&] {
    GroupedLinearForward(ctx, y, x, Tensors(w), offsets);
    return Dot(y, dy);
  };
  GroupedLinearBackward(ctx, dx, Tensors(dw), dy, x, Tensors(w), offsets);
  ExpectGradient(dx, x, loss);
  ExpectGradient(dw[0], w[0], loss);
  ExpectGradient(dw[2], w[2], loss);
  EXPECT_EQ(MaxAbs(dw[1]), 0.0);
}

}  // namespace
}  // namespace ela::kernels
