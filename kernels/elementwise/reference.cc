#include <algorithm>
#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {
namespace {

template <class Value>
void Each(const Tensor& y_out, const Value& value) {
  Matrix y(y_out.dim(0), y_out.row_numel());
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.columns(); ++j) y(i, j) = value(i, j);
  }
  y.StoreTo(y_out);
}

}  // namespace

void Add(const Context& ctx, Tensor y, Tensor a_in, Tensor b_in) {
  const Matrix a(a_in), b(b_in);
  Each(y, [&](int64_t i, int64_t j) { return a(i, j) + b(i, j); });
}

void Fill(const Context& ctx, Tensor x, double value) {
  Each(x, [&](int64_t, int64_t) { return value; });
}

void Copy(const Context& ctx, Tensor y, Tensor x) { Matrix(x).StoreTo(y); }

void Scale(const Context& ctx, Tensor x_inout, double factor) {
  const Matrix x(x_inout);
  Each(x_inout, [&](int64_t i, int64_t j) { return factor * x(i, j); });
}

void RowArgmax(const Context& ctx, Tensor index, Tensor x_in) {
  const Matrix x(x_in);
  for (int64_t t = 0; t < x.rows(); ++t) {
    int64_t best = -1;
    for (int64_t j = 0; j < x.columns(); ++j) {
      if (best < 0 ? !std::isnan(x(t, j)) : x(t, j) > x(t, best)) best = j;
    }
    index.as<int32_t>()[t] = static_cast<int32_t>(std::max<int64_t>(best, 0));
  }
}

void RowDots(const Context& ctx, Tensor dots, Tensor a_in, Tensor b_in) {
  const Matrix a(a_in), b(b_in);
  const int64_t d = a.columns() / dots.row_numel();
  Each(dots, [&](int64_t t, int64_t h) {
    double sum = 0;
    for (int64_t i = h * d; i < (h + 1) * d; ++i) sum += a(t, i) * b(t, i);
    return sum;
  });
}

}  // namespace ela::kernels::reference
