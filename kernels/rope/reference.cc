#include <cmath>

#include "kernels/matrix.h"
#include "kernels/rope/rope.h"

namespace ela::kernels::reference {

void Rope(const Context& ctx, Tensor x_inout, Tensor positions_in, double theta, bool inverse) {
  const int64_t heads = x_inout.dim(1), head_dim = x_inout.dim(2);
  ELA_CHECK(head_dim % 2 == 0);
  Matrix x(x_inout);
  const Matrix positions(positions_in);
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
      const double angle = positions(t, 0) * std::pow(theta, exponent) * (inverse ? -1 : 1);
      for (int64_t h = 0; h < heads; ++h) {
        double& even = x(t, h * head_dim + 2 * i);
        double& odd = x(t, h * head_dim + 2 * i + 1);
        const double turned = even * std::cos(angle) - odd * std::sin(angle);
        odd = even * std::sin(angle) + odd * std::cos(angle);
        even = turned;
      }
    }
  }
  x.StoreTo(x_inout);
}

}  // namespace ela::kernels::reference
