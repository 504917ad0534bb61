#include "kernels/label_bias/label_bias.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

class LabelBiasTest : public ::testing::TestWithParam<LabelBias> {
 protected:
  OpRun ForwardBackward(std::vector<int64_t> offsets, int64_t d) {
    return [=, bias = GetParam()](const Context& ctx, DType dtype) {
      const DType statistic = StatisticOf(dtype);
      const int64_t rows = offsets.back(), experts = static_cast<int64_t>(offsets.size()) - 1;
      Buffer f = Input(dtype, {rows, d}, 1), w = Input(statistic, {rows}, 2);
      Buffer labels = Input(dtype, {experts, d}, 3), dy = Input(dtype, {rows, d}, 4);
      Buffer y(dtype, {rows, d}), df(dtype, {rows, d}), dw(statistic, {rows});
      Buffer dlabels = Input(statistic, {experts, d}, 5);
      LabelBiasForward(ctx, y, f, w, labels, offsets, bias);
      LabelBiasBackward(ctx, df, dw, dlabels, dy, f, w, labels, offsets, bias);
      return Outputs(std::move(y), std::move(df), std::move(dw), std::move(dlabels));
    };
  }
};

TEST_P(LabelBiasTest, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(ForwardBackward({0, 0, 0}, 8));
  ExpectGoodOnCpu(ForwardBackward({0, 1}, 1));
  ExpectGoodOnCpu(ForwardBackward({0, 63, 63, 130, 131}, 65));
  ExpectGoodOnCpu(ForwardBackward({0, 0, 300, 300}, 129));
}

TEST_P(LabelBiasTest, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  constexpr DType kF64 = DType::kF64;
  const std::vector<int64_t> offsets = {0, 2, 2, 5};
  Buffer f = Input(kF64, {5, 3}, 1), w = Input(kF64, {5}, 2), labels = Input(kF64, {3, 3}, 3);
  Buffer y(kF64, {5, 3}), dy = Input(kF64, {5, 3}, 4), df(kF64, {5, 3}), dw(kF64, {5});
  Buffer dlabels = ZeroBuffer(kF64, {3, 3});
  const auto loss = [&] {
    LabelBiasForward(ctx, y, f, w, labels, offsets, GetParam());
    return Dot(y, dy);
  };
  LabelBiasBackward(ctx, df, dw, dlabels, dy, f, w, labels, offsets, GetParam());
  ExpectGradient(df, f, loss);
  ExpectGradient(dw, w, loss);
  ExpectGradient(dlabels, labels, loss);
}

INSTANTIATE_TEST_SUITE_P(All, LabelBiasTest,
                         ::testing::Values(LabelBias::kNone, LabelBias::kInner, LabelBias::kOuter));

TEST(LabelBias, NoneNeedsNoLabels) {
  for (Backend backend : {Backend::kReference, TestBackend()}) {
    OpContext ctx(backend);
    const DType dtype = FloatOf(backend);
    Buffer f = Input(dtype, {2, 3}, 1), w = Input(dtype, {2}, 2), y(dtype, {2, 3});
    Buffer df(dtype, {2, 3}), dw(dtype, {2});
    LabelBiasForward(ctx, y, f, w, Tensor(), {0, 1, 2}, LabelBias::kNone);
    LabelBiasBackward(ctx, df, dw, Tensor(), f, f, w, Tensor(), {0, 1, 2}, LabelBias::kNone);
    EXPECT_TRUE(BitwiseEqual(y, df));
  }
}

}  // namespace
}  // namespace ela::kernels
