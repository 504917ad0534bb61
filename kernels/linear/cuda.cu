// Products by cuBLASLt. Activations and weights are of one type, weight gradients float: what is
// added to a product is added in the library's own epilogue. Experts' products follow each other.
#include "kernels/device_gemm.h"
#include "kernels/linear/linear.h"
#include "kernels/rows.h"

namespace ela::kernels::cuda {
namespace {

DeviceGemm Forward(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& added) {
  CheckShape("x", x, y.dim(0), w.row_numel());
  CheckShape("y", y, x.dim(0), w.dim(0));
  if (!added.empty()) CheckShape("added", added, y.dim(0), y.row_numel());
  ELA_CHECK(added.empty() || added.dtype() == y.dtype(), "y and added are of different types");
  ELA_CHECK(x.dtype() == w.dtype(), "x and w are of different types");
  return {.m = y.dim(0),
          .n = w.dim(0),
          .k = w.row_numel(),
          .a = x.data(),
          .lda = x.stride(),
          .b = w.data(),
          .ldb = w.stride(),
          .b_transposed = true,
          .c = y.data(),
          .ldc = y.stride(),
          .added = added.empty() ? nullptr : added.data(),
          .ld_added = added.empty() ? 0 : added.stride(),
          .input = x.dtype(),
          .output = y.dtype()};
}

DeviceGemm InputGradient(const Tensor& dx, const Tensor& dy, const Tensor& w) {
  CheckShape("dx", dx, dy.dim(0), w.row_numel());
  CheckShape("dy", dy, dy.dim(0), w.dim(0));
  ELA_CHECK(dy.dtype() == w.dtype(), "dy and w are of different types");
  return {.m = dx.dim(0),
          .n = w.row_numel(),
          .k = w.dim(0),
          .a = dy.data(),
          .lda = dy.stride(),
          .b = w.data(),
          .ldb = w.stride(),
          .c = dx.data(),
          .ldc = dx.stride(),
          .input = dy.dtype(),
          .output = dx.dtype()};
}

DeviceGemm WeightGradient(const Tensor& dw, const Tensor& dy, const Tensor& x) {
  CheckShape("dy", dy, x.dim(0), dw.dim(0));
  CheckShape("x", x, dy.dim(0), dw.row_numel());
  ELA_CHECK(dy.dtype() == x.dtype(), "dy and x are of different types");
  return {.m = dw.dim(0),
          .n = dw.row_numel(),
          .k = dy.dim(0),
          .a = dy.data(),
          .lda = dy.stride(),
          .a_transposed = true,
          .b = x.data(),
          .ldb = x.stride(),
          .c = dw.as<float>(),
          .ldc = dw.stride(),
          .added = dw.data(),
          .ld_added = dw.stride(),
          .input = dy.dtype(),
          .output = DType::kF32};
}

DeviceGemm Ragged(DeviceGemm problem) {
  problem.ragged = true;
  return problem;
}

void CheckOffsets(const std::vector<int64_t>& offsets, size_t experts, int64_t rows) {
  ELA_CHECK(offsets.size() == experts + 1 && offsets[0] == 0 && offsets[experts] == rows,
            "%zu offsets for %zu experts and %lld rows", offsets.size(), experts,
            static_cast<long long>(rows));
}

}  // namespace

void LinearForward(const Context& ctx, Tensor y, Tensor x, Tensor w, Tensor added) {
  Gemm(ctx, Forward(y, x, w, added));
}

void LinearBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w) {
  if (dy.dim(0) == 0) return;
  if (!dx.empty()) Gemm(ctx, InputGradient(dx, dy, w));
  if (!dw.empty()) Gemm(ctx, WeightGradient(dw, dy, x));
}

void GroupedLinearForward(const Context& ctx, Tensor y, Tensor x, const std::vector<Tensor>& w,
                          const std::vector<int64_t>& offsets, Tensor added) {
  CheckOffsets(offsets, w.size(), y.dim(0));
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    if (begin == end) continue;
    Gemm(ctx, Ragged(Forward(y.Rows(begin, end), x.Rows(begin, end), w[e],
                             added.empty() ? added : added.Rows(begin, end))));
  }
}

void GroupedLinearBackward(const Context& ctx, Tensor dx, const std::vector<Tensor>& dw, Tensor dy,
                           Tensor x, const std::vector<Tensor>& w,
                           const std::vector<int64_t>& offsets) {
  CheckOffsets(offsets, w.size(), dy.dim(0));
  ELA_CHECK(dw.empty() || dw.size() == w.size(), "%zu dw for %zu w", dw.size(), w.size());
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    if (begin == end) continue;
    const Tensor dy_e = dy.Rows(begin, end);
    if (!dx.empty()) {
      Gemm(ctx, Ragged(InputGradient(dx.Rows(begin, end), dy_e, w[e])));
    }
    if (!dw.empty() && !dw[e].empty()) {
      Gemm(ctx, Ragged(WeightGradient(dw[e], dy_e, x.Rows(begin, end))));
    }
  }
}

}  // namespace ela::kernels::cuda
