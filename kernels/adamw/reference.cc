#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {

void AdamWUpdate(const Context& ctx, Tensor param, Tensor master_inout, Tensor m_inout,
                 Tensor v_inout, Tensor grad_in, const AdamWConfig& config) {
  Matrix master(master_inout), m(m_inout), v(v_inout);
  const Matrix grad(grad_in);
  const double step = static_cast<double>(config.step);
  for (int64_t i = 0; i < master.rows(); ++i) {
    const double g = grad(i, 0) * config.grad_scale;
    m(i, 0) = config.beta1 * m(i, 0) + (1 - config.beta1) * g;
    v(i, 0) = config.beta2 * v(i, 0) + (1 - config.beta2) * g * g;
    const double m_hat = m(i, 0) / (1 - std::pow(config.beta1, step));
    const double v_hat = v(i, 0) / (1 - std::pow(config.beta2, step));
    master(i, 0) -=
        config.lr * (m_hat / (std::sqrt(v_hat) + config.eps) + config.weight_decay * master(i, 0));
  }
  master.StoreTo(master_inout);
  m.StoreTo(m_inout);
  v.StoreTo(v_inout);
  master.StoreTo(param);
}

void SumOfSquares(const Context& ctx, Tensor out, Tensor x_in) {
  const Matrix x(x_in);
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.columns(); ++j) *out.as<double>() += x(i, j) * x(i, j);
  }
}

}  // namespace ela::kernels::reference
