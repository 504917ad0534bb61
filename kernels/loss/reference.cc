#include <algorithm>
#include <cmath>

#include "kernels/loss/loss.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {
namespace {

double LogSumExp(const Matrix& logits, int64_t t) {
  double largest = -INFINITY, sum = 0;
  for (int64_t v = 0; v < logits.columns(); ++v) largest = std::fmax(largest, logits(t, v));
  for (int64_t v = 0; v < logits.columns(); ++v) sum += std::exp(logits(t, v) - largest);
  return largest + std::log(sum);
}

}  // namespace

void LossForwardBackward(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x_in,
                         Tensor table_in, Tensor targets, double scale) {
  const Matrix x(x_in), table(table_in);
  const Matrix logits = ProductWithTransposed(x, table);
  Matrix dlogits(logits.rows(), logits.columns());
  for (int64_t t = 0; t < logits.rows(); ++t) {
    const int32_t target = targets.as<int32_t>()[t];
    if (target < 0) continue;
    const double lse = LogSumExp(logits, t);
    *loss_sum.as<double>() += lse - logits(t, target);
    for (int64_t v = 0; v < logits.columns(); ++v) {
      dlogits(t, v) = scale * (std::exp(logits(t, v) - lse) - (v == target ? 1 : 0));
    }
  }
  if (!dx.empty()) Product(dlogits, table).StoreTo(dx);
  if (!dtable.empty()) ProductOfTransposed(dlogits, x).AddTo(dtable);
}

void TokenLogprobs(const Context& ctx, Tensor logprob_out, Tensor x, Tensor table, Tensor targets) {
  const Matrix logits = ProductWithTransposed(Matrix(x), Matrix(table));
  Matrix logprob(logits.rows(), 1);
  for (int64_t t = 0; t < logits.rows(); ++t) {
    const int32_t target = targets.as<int32_t>()[t];
    if (target >= 0) logprob(t, 0) = logits(t, target) - LogSumExp(logits, t);
  }
  logprob.StoreTo(logprob_out);
}

}  // namespace ela::kernels::reference
