#include "kernels/swiglu/swiglu.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

OpRun ForwardBackward(int64_t rows, int64_t width, double scale = 1) {
  return [=](const Context& ctx, DType dtype) {
    Buffer gu = Input(dtype, {rows, 2 * width}, 1, scale), dh = Input(dtype, {rows, width}, 2);
    Buffer h(dtype, {rows, width}), dgu(dtype, {rows, 2 * width});
    SwigluForward(ctx, h, gu);
    SwigluBackward(ctx, dgu, dh, gu);
    return Outputs(std::move(h), std::move(dgu));
  };
}

TEST(Swiglu, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(ForwardBackward(0, 8));
  ExpectGoodOnCpu(ForwardBackward(1, 1));
  ExpectGoodOnCpu(ForwardBackward(63, 65));
  ExpectGoodOnCpu(ForwardBackward(301, 130));
}

TEST(Swiglu, IsRightWhereTheGateSaturates) { ExpectGoodOnCpu(ForwardBackward(9, 65, 200)); }

TEST(Swiglu, PassesNaNOn) {
  OpContext ctx(TestBackend());
  Buffer gu = Input(DType::kF32, {1, 34}, 1), h(DType::kF32, {1, 17});
  Set(gu, 3, NAN);
  SwigluForward(ctx, h, gu);
  EXPECT_TRUE(std::isnan(Get(h, 3)));
  EXPECT_FALSE(std::isnan(Get(h, 2)));
}

TEST(Swiglu, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  Buffer gu = Input(DType::kF64, {3, 8}, 1), dh = Input(DType::kF64, {3, 4}, 2);
  Buffer h(DType::kF64, {3, 4}), dgu(DType::kF64, {3, 8});
  SwigluBackward(ctx, dgu, dh, gu);
  ExpectGradient(dgu, gu, [&] {
    SwigluForward(ctx, h, gu);
    return Dot(h, dh);
  });
}

}  // namespace
}  // namespace ela::kernels
