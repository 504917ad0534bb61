#include <cmath>

#include "kernels/experts/experts.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {
namespace {

/// down (silu(g) u), [g, u] = up x_t.
std::vector<double> OutputOf(const Matrix& x, int64_t t, const Matrix& up, const Matrix& down) {
  const int64_t width = down.columns();
  std::vector<double> gate_value(static_cast<size_t>(2 * width)), f;
  for (int64_t i = 0; i < 2 * width; ++i) {
    for (int64_t j = 0; j < x.columns(); ++j) {
      gate_value[static_cast<size_t>(i)] += up(i, j) * x(t, j);
    }
  }
  for (int64_t i = 0; i < down.rows(); ++i) {
    double sum = 0;
    for (int64_t j = 0; j < width; ++j) {
      const double g = gate_value[static_cast<size_t>(j)];
      sum += down(i, j) * g / (1 + std::exp(-g)) * gate_value[static_cast<size_t>(width + j)];
    }
    f.push_back(sum);
  }
  return f;
}

}  // namespace

void ExpertsForward(const Context& ctx, Tensor out_out, Tensor x_in, Tensor weights_in,
                    Tensor experts, const std::vector<Tensor>& up, const std::vector<Tensor>& down,
                    Tensor labels_in, LabelBias bias, Tensor added) {
  const Matrix x(x_in), w(weights_in);
  const Matrix labels = bias == LabelBias::kNone ? Matrix(0, 0) : Matrix(labels_in);
  Matrix out(x.rows(), x.columns());
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t k = 0; k < w.columns(); ++k) {
      const auto e = static_cast<size_t>(experts.as<int32_t>()[t * w.columns() + k]);
      const std::vector<double> f = OutputOf(x, t, Matrix(up[e]), Matrix(down[e]));
      for (int64_t i = 0; i < x.columns(); ++i) {
        out(t, i) += w(t, k) * f[static_cast<size_t>(i)];
        if (bias == LabelBias::kNone) continue;
        const double factor = bias == LabelBias::kInner ? w(t, k) : 1;
        out(t, i) += factor * labels(static_cast<int64_t>(e), i);
      }
    }
  }
  out.StoreTo(out_out);
  if (!added.empty()) Matrix(added).AddTo(out_out);
}

}  // namespace ela::kernels::reference
