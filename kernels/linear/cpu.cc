// Products by BLAS in float. bf16 activations and weights are widened into scratch first (their
// sizes in floats); weight gradients are float whatever the activations are.
#include "kernels/gemm.h"
#include "kernels/linear/linear.h"
#include "kernels/rows.h"

namespace ela::kernels::cpu {
namespace {

GemmProblem Forward(const Tensor& y, const Tensor& x, const Tensor& w) {
  CheckShape("x", x, y.dim(0), w.row_numel());
  CheckShape("y", y, x.dim(0), w.dim(0));
  return {.m = y.dim(0),
          .n = w.dim(0),
          .k = w.row_numel(),
          .a = x.as<float>(),
          .lda = x.stride(),
          .b = w.as<float>(),
          .ldb = w.stride(),
          .b_transposed = true,
          .c = y.as<float>(),
          .ldc = y.stride()};
}

GemmProblem InputGradient(const Tensor& dx, const Tensor& dy, const Tensor& w) {
  CheckShape("dx", dx, dy.dim(0), w.row_numel());
  CheckShape("dy", dy, dy.dim(0), w.dim(0));
  return {.m = dx.dim(0),
          .n = w.row_numel(),
          .k = w.dim(0),
          .a = dy.as<float>(),
          .lda = dy.stride(),
          .b = w.as<float>(),
          .ldb = w.stride(),
          .c = dx.as<float>(),
          .ldc = dx.stride()};
}

GemmProblem WeightGradient(const Tensor& dw, const Tensor& dy, const Tensor& x) {
  CheckShape("dy", dy, x.dim(0), dw.dim(0));
  CheckShape("x", x, dy.dim(0), dw.row_numel());
  return {.m = dw.dim(0),
          .n = dw.row_numel(),
          .k = dy.dim(0),
          .a = dy.as<float>(),
          .lda = dy.stride(),
          .a_transposed = true,
          .b = x.as<float>(),
          .ldb = x.stride(),
          .c = dw.as<float>(),
          .ldc = dw.stride(),
          .accumulate = true};
}

void CheckOffsets(const std::vector<int64_t>& offsets, size_t experts, int64_t rows) {
  ELA_CHECK(offsets.size() == experts + 1 && offsets[0] == 0 && offsets[experts] == rows,
            "%zu offsets for %zu experts and %lld rows", offsets.size(), experts,
            static_cast<long long>(rows));
}

}  // namespace

void LinearForward(const Context& ctx, Tensor y, Tensor x, Tensor w) {
  ArenaScope scope(ctx.scratch);
  const Tensor wide_y = WideTarget(ctx, y);
  Gemm(ctx, {Forward(wide_y, Widened(ctx, x), Widened(ctx, w))});
  NarrowInto(ctx, y, wide_y);
}

void LinearBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w) {
  if (dy.dim(0) == 0) return;
  ArenaScope scope(ctx.scratch);
  const Tensor wide_dy = Widened(ctx, dy);
  if (!dx.empty()) {
    const Tensor wide_dx = WideTarget(ctx, dx);
    Gemm(ctx, {InputGradient(wide_dx, wide_dy, Widened(ctx, w))});
    NarrowInto(ctx, dx, wide_dx);
  }
  if (!dw.empty()) Gemm(ctx, {WeightGradient(dw, wide_dy, Widened(ctx, x))});
}

void GroupedLinearForward(const Context& ctx, Tensor y, Tensor x, const std::vector<Tensor>& w,
                          const std::vector<int64_t>& offsets) {
  CheckOffsets(offsets, w.size(), y.dim(0));
  ArenaScope scope(ctx.scratch);
  const Tensor wide_y = WideTarget(ctx, y), wide_x = Widened(ctx, x);
  std::vector<GemmProblem> problems;
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    if (begin == end) continue;
    problems.push_back(
        Forward(wide_y.Rows(begin, end), wide_x.Rows(begin, end), Widened(ctx, w[e])));
  }
  Gemm(ctx, problems);
  NarrowInto(ctx, y, wide_y);
}

void GroupedLinearBackward(const Context& ctx, Tensor dx, const std::vector<Tensor>& dw, Tensor dy,
                           Tensor x, const std::vector<Tensor>& w,
                           const std::vector<int64_t>& offsets) {
  CheckOffsets(offsets, w.size(), dy.dim(0));
  ELA_CHECK(dw.empty() || dw.size() == w.size(), "%zu dw for %zu w", dw.size(), w.size());
  if (dy.dim(0) == 0) return;
  ArenaScope scope(ctx.scratch);
  const Tensor wide_dy = Widened(ctx, dy);
  const Tensor wide_dx = dx.empty() ? Tensor() : WideTarget(ctx, dx);
  const Tensor wide_x = dw.empty() ? Tensor() : Widened(ctx, x);
  std::vector<GemmProblem> problems;
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    if (begin == end) continue;
    const Tensor dy_e = wide_dy.Rows(begin, end);
    if (!dx.empty()) {
      problems.push_back(InputGradient(wide_dx.Rows(begin, end), dy_e, Widened(ctx, w[e])));
    }
    if (!dw.empty() && !dw[e].empty()) {
      problems.push_back(WeightGradient(dw[e], dy_e, wide_x.Rows(begin, end)));
    }
  }
  Gemm(ctx, problems);
  if (!dx.empty()) NarrowInto(ctx, dx, wide_dx);
}

}  // namespace ela::kernels::cpu
