// Products by BLAS in float. bf16 activations and weights are widened into scratch first (their
// sizes in floats); weight gradients are float whatever the activations are.
#include <algorithm>

#include "kernels/elementwise/elementwise.h"
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

/// The last rows of an expert where they are not a whole group: computed as one, beside y.
struct Remainder {
  Tensor y, whole;  // [rows, out], [kGemmRowGroup, out]
};

/// Adds y = x w^T as whole groups of rows.
void AddWholeGroups(const Context& ctx, const Tensor& y, const Tensor& x, const Tensor& w,
                    std::vector<GemmProblem>* problems, std::vector<Remainder>* remainders) {
  const int64_t rows = y.dim(0), whole = rows / kGemmRowGroup * kGemmRowGroup;
  const auto add = [&](const Tensor& to, const Tensor& from) {
    problems->push_back(Forward(to, from, w));
    problems->back().rows_alike = true;
  };
  if (whole > 0) add(y.Rows(0, whole), x.Rows(0, whole));
  if (whole == rows) return;
  const auto group = [&](const Tensor& like) {
    const size_t bytes = static_cast<size_t>(kGemmRowGroup * like.row_numel()) * sizeof(float);
    return Tensor::Of(static_cast<float*>(ctx.scratch->Take(bytes)),
                      {kGemmRowGroup, like.row_numel()});
  };
  const Tensor group_x = group(x), group_y = group(y);
  for (int64_t i = 0; i < kGemmRowGroup; ++i) {
    float* to = group_x.as<float>() + i * x.row_numel();
    if (i < rows - whole) {
      std::copy_n(x.as<float>() + (whole + i) * x.stride(), x.row_numel(), to);
    } else {
      std::fill_n(to, x.row_numel(), 0.0f);
    }
  }
  add(group_y, group_x);
  remainders->push_back({y.Rows(whole, rows), group_y});
}

}  // namespace

void LinearForward(const Context& ctx, Tensor y, Tensor x, Tensor w, Tensor added) {
  ArenaScope scope(ctx.scratch);
  const Tensor wide_y = WideTarget(ctx, y);
  Gemm(ctx, {Forward(wide_y, Widened(ctx, x), Widened(ctx, w))});
  if (!added.empty()) Add(ctx, wide_y, wide_y, added);
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
                          const std::vector<int64_t>& offsets, Tensor added) {
  CheckOffsets(offsets, w.size(), y.dim(0));
  ArenaScope scope(ctx.scratch);
  const Tensor wide_y = WideTarget(ctx, y), wide_x = Widened(ctx, x);
  const bool few = y.dim(0) < 2 * kGemmRowGroup;  // decoding: whole groups would be a waste
  std::vector<GemmProblem> problems;
  std::vector<Remainder> remainders;
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    if (begin == end) continue;
    const Tensor y_e = wide_y.Rows(begin, end), x_e = wide_x.Rows(begin, end);
    if (few) {
      problems.push_back(Forward(y_e, x_e, Widened(ctx, w[e])));
    } else {
      AddWholeGroups(ctx, y_e, x_e, Widened(ctx, w[e]), &problems, &remainders);
    }
  }
  Gemm(ctx, problems);
  for (const Remainder& r : remainders) {
    for (int64_t i = 0; i < r.y.dim(0); ++i) {
      std::copy_n(r.whole.as<float>() + i * r.whole.stride(), r.whole.row_numel(),
                  r.y.as<float>() + i * r.y.stride());
    }
  }
  if (!added.empty()) Add(ctx, wide_y, wide_y, added);
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
