#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "kernels/matrix.h"
#include "kernels/rms_norm/rms_norm.h"

namespace ela::kernels::reference {

void RmsNormForward(const Context& ctx, Tensor y_out, Tensor rstd_out, Tensor x_in,
                    Tensor gain_in) {
  const Matrix x(x_in), gain(gain_in);
  Matrix y(x.rows(), x.columns()), rstd(x.rows(), 1);
  const int64_t d = x.columns();
  for (int64_t t = 0; t < x.rows(); ++t) {
    double squares = 0;
    for (int64_t i = 0; i < d; ++i) squares += x(t, i) * x(t, i);
    rstd(t, 0) = 1 / std::sqrt(squares / static_cast<double>(d) + kRmsNormEps);
    for (int64_t i = 0; i < d; ++i) y(t, i) = x(t, i) * rstd(t, 0) * gain(i, 0);
  }
  y.StoreTo(y_out);
  rstd.StoreTo(rstd_out);
}

// With n = x rstd and g = dy gain: dx = rstd (g - n mean(g n)), dgain = sum over rows of dy n.
void RmsNormBackward(const Context& ctx, Tensor dx_out, Tensor dgain_out, Tensor dy_in, Tensor x_in,
                     Tensor gain_in, Tensor rstd_in, Tensor added) {
  const Matrix dy(dy_in), x(x_in), gain(gain_in), rstd(rstd_in);
  Matrix dx(x.rows(), x.columns()), dgain(x.columns(), 1);
  const int64_t d = x.columns();
  for (int64_t t = 0; t < x.rows(); ++t) {
    double mean = 0;
    for (int64_t i = 0; i < d; ++i) mean += dy(t, i) * gain(i, 0) * x(t, i) * rstd(t, 0);
    mean /= static_cast<double>(d);
    for (int64_t i = 0; i < d; ++i) {
      const double n = x(t, i) * rstd(t, 0);
      dx(t, i) = rstd(t, 0) * (dy(t, i) * gain(i, 0) - n * mean);
      dgain(i, 0) += dy(t, i) * n;
    }
  }
  dx.StoreTo(dx_out);
  dgain.AddTo(dgain_out);
  if (!added.empty()) Add(ctx, dx_out, dx_out, added);
}

}  // namespace ela::kernels::reference
