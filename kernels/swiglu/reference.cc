#include <cmath>

#include "kernels/matrix.h"
#include "kernels/swiglu/swiglu.h"

namespace ela::kernels::reference {

void SwigluForward(const Context& ctx, Tensor h_out, Tensor gu_in) {
  const Matrix gu(gu_in);
  const int64_t width = gu.columns() / 2;
  Matrix h(gu.rows(), width);
  for (int64_t r = 0; r < h.rows(); ++r) {
    for (int64_t i = 0; i < width; ++i) {
      const double g = gu(r, i), u = gu(r, width + i);
      h(r, i) = g / (1 + std::exp(-g)) * u;
    }
  }
  h.StoreTo(h_out);
}

void SwigluBackward(const Context& ctx, Tensor dgu_out, Tensor dh_in, Tensor gu_in) {
  const Matrix gu(gu_in), dh(dh_in);
  const int64_t width = gu.columns() / 2;
  Matrix dgu(gu.rows(), 2 * width);
  for (int64_t r = 0; r < gu.rows(); ++r) {
    for (int64_t i = 0; i < width; ++i) {
      const double g = gu(r, i), u = gu(r, width + i);
      const double sigmoid = 1 / (1 + std::exp(-g));
      dgu(r, i) = dh(r, i) * u * sigmoid * (1 + g * (1 - sigmoid));
      dgu(r, width + i) = dh(r, i) * g * sigmoid;
    }
  }
  dgu.StoreTo(dgu_out);
}

}  // namespace ela::kernels::reference
