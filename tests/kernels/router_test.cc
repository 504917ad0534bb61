#include "kernels/router/router.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF64 = DType::kF64;

/// Inputs and outputs of a router over E experts that chooses K.
struct Fixture {
  Fixture(DType dtype, int64_t tokens, int64_t d, int64_t num_experts, int64_t choices)
      : x(Input(dtype, {tokens, d}, 1)),
        w(Input(dtype, {num_experts, d}, 2, 0.3)),
        b(Input(dtype, {num_experts}, 3)),
        dweights(Input(StatisticOf(dtype), {tokens, choices}, 4)),
        dprobs_all(Input(StatisticOf(dtype), {num_experts}, 5)),
        probs(StatisticOf(dtype), {tokens, num_experts}),
        weights(StatisticOf(dtype), {tokens, choices}),
        experts(DType::kI32, {tokens, choices}),
        dx(dtype, {tokens, d}),
        dw(ZeroBuffer(StatisticOf(dtype), {num_experts, d})),
        db(ZeroBuffer(StatisticOf(dtype), {num_experts})) {}

  void Forward(const Context& ctx) { RouterForward(ctx, probs, weights, experts, x, w, b); }
  void Backward(const Context& ctx, const Tensor& all) {
    RouterBackward(ctx, dx, dw, db, dweights, all, probs, weights, experts, x, w);
  }

  Buffer x, w, b, dweights, dprobs_all;
  Buffer probs, weights, experts, dx, dw, db;
};

OpRun ForwardBackward(int64_t tokens, int64_t d, int64_t num_experts, int64_t choices) {
  return [=](const Context& ctx, DType dtype) {
    Fixture f(dtype, tokens, d, num_experts, choices);
    f.Forward(ctx);
    f.Backward(ctx, f.dprobs_all);
    Buffer sums = ZeroBuffer(kF64, {num_experts}), counts = ZeroBuffer(DType::kI64, {num_experts});
    RouterStatistics(ctx, sums, counts, f.probs, f.experts);
    return Outputs(std::move(f.probs), std::move(f.weights), std::move(f.experts), std::move(f.dx),
                   std::move(f.dw), std::move(f.db), std::move(sums), std::move(counts));
  };
}

// Weights of K > 1 and their gradients divide by sums of probabilities: a few more roundings.
constexpr double kTolerance = 1e-5;

TEST(Router, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(ForwardBackward(0, 8, 4, 2), kTolerance);
  ExpectGoodOnCpu(ForwardBackward(1, 1, 1, 1), kTolerance);
  ExpectGoodOnCpu(ForwardBackward(63, 65, 7, 3), kTolerance);
  ExpectGoodOnCpu(ForwardBackward(500, 33, 64, 8), kTolerance);
  ExpectGoodOnCpu(ForwardBackward(65, 16, 5, 5), kTolerance);
}

TEST(Router, BackwardMatchesJacobian) {
  for (int64_t choices : {1, 2, 4}) {
    OpContext ctx(Backend::kReference);
    Fixture f(kF64, 3, 5, 4, choices);
    const auto loss = [&] {
      f.Forward(ctx);
      double sum = Dot(f.weights, f.dweights);
      for (int64_t i = 0; i < 12; ++i) sum += Get(f.probs, i) * Get(f.dprobs_all, i % 4);
      return sum;
    };
    loss();
    f.Backward(ctx, f.dprobs_all);
    ExpectGradient(f.dx, f.x, loss);
    ExpectGradient(f.dw, f.w, loss);
    ExpectGradient(f.db, f.b, loss);
  }
}

TEST(Router, BalanceGradientMayBeLeftOut) {
  OpContext ctx(Backend::kReference);
  Fixture f(kF64, 3, 5, 4, 2);
  const auto loss = [&] {
    f.Forward(ctx);
    return Dot(f.weights, f.dweights);
  };
  loss();
  f.Backward(ctx, Tensor());
  ExpectGradient(f.dx, f.x, loss);
}

TEST(Router, TiesGoToTheLowerExpert) {
  for (Backend backend : {Backend::kReference, TestBackend()}) {
    OpContext ctx(backend);
    Fixture f(FloatOf(backend), 2, 3, 5, 3);
    testing::Fill(f.w, 0);
    testing::Fill(f.b, 0);
    Set(f.b, 3, 1);
    f.Forward(ctx);
    EXPECT_EQ(Values(f.experts), (std::vector<double>{3, 0, 1, 3, 0, 1}));
  }
}

TEST(Router, ChoosesByDescendingProbability) {
  OpContext ctx(TestBackend());
  Fixture f(DType::kF32, 40, 8, 6, 6);
  f.Forward(ctx);
  for (int64_t i = 0; i < 240; ++i) {
    if (i % 6 == 0) continue;
    EXPECT_GE(Get(f.weights, i - 1), Get(f.weights, i));
  }
}

TEST(Router, NaNTokensStillChooseDifferentExperts) {
  OpContext ctx(TestBackend());
  Fixture f(DType::kF32, 1, 3, 4, 3);
  Set(f.x, 1, NAN);
  f.Forward(ctx);
  EXPECT_EQ(Values(f.experts), (std::vector<double>{0, 1, 2}));
  EXPECT_TRUE(std::isnan(Get(f.weights, 0)));
}

TEST(Router, HugeLogitsStayFinite) {
  OpContext ctx(TestBackend());
  Fixture f(DType::kF32, 20, 8, 4, 2);
  for (int64_t i = 0; i < 32; ++i) Set(f.w, i, 1e6 * Get(f.w, i));
  f.Forward(ctx);
  f.Backward(ctx, f.dprobs_all);
  EXPECT_TRUE(std::isfinite(RelativeError(f.weights, f.weights)));
  EXPECT_TRUE(std::isfinite(RelativeError(f.dx, f.dx)));
}

}  // namespace
}  // namespace ela::kernels
