#include "kernels/elementwise/elementwise.h"
#include "kernels/linear/linear.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {

void LinearForward(const Context& ctx, Tensor y, Tensor x, Tensor w, Tensor added) {
  ProductWithTransposed(Matrix(x), Matrix(w)).StoreTo(y);
  if (!added.empty()) Add(ctx, y, y, added);
}

void LinearBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w) {
  if (!dx.empty()) Product(Matrix(dy), Matrix(w)).StoreTo(dx);
  if (!dw.empty()) ProductOfTransposed(Matrix(dy), Matrix(x)).AddTo(dw);
}

void GroupedLinearForward(const Context& ctx, Tensor y, Tensor x, const std::vector<Tensor>& w,
                          const std::vector<int64_t>& offsets, Tensor added) {
  ELA_CHECK(offsets.size() == w.size() + 1 && offsets.back() == y.dim(0));
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    reference::LinearForward(ctx, y.Rows(begin, end), x.Rows(begin, end), w[e],
                             added.empty() ? added : added.Rows(begin, end));
  }
}

void GroupedLinearBackward(const Context& ctx, Tensor dx, const std::vector<Tensor>& dw, Tensor dy,
                           Tensor x, const std::vector<Tensor>& w,
                           const std::vector<int64_t>& offsets) {
  ELA_CHECK(offsets.size() == w.size() + 1 && offsets.back() == dy.dim(0));
  for (size_t e = 0; e < w.size(); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    reference::LinearBackward(ctx, dx.empty() ? Tensor() : dx.Rows(begin, end),
                              dw.empty() ? Tensor() : dw[e], dy.Rows(begin, end),
                              x.empty() ? Tensor() : x.Rows(begin, end), w[e]);
  }
}

}  // namespace ela::kernels::reference
