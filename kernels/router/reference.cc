#include <cmath>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/router/router.h"

namespace ela::kernels::reference {

void RouterForward(const Context& ctx, Tensor probs_out, Tensor weights_out, Tensor experts_out,
                   Tensor x, Tensor w, Tensor b_in) {
  Matrix probs = ProductWithTransposed(Matrix(x), Matrix(w));  // logits until the softmax
  const Matrix b(b_in);
  const int64_t tokens = probs.rows(), experts = probs.columns(), choices = weights_out.dim(1);
  Matrix weights(tokens, choices), chosen(tokens, choices);
  for (int64_t t = 0; t < tokens; ++t) {
    double largest = -INFINITY, total = 0;
    for (int64_t e = 0; e < experts; ++e) largest = std::fmax(largest, probs(t, e) += b(e, 0));
    for (int64_t e = 0; e < experts; ++e) total += std::exp(probs(t, e) - largest);
    for (int64_t e = 0; e < experts; ++e) probs(t, e) = std::exp(probs(t, e) - largest) / total;

    std::vector<bool> taken(static_cast<size_t>(experts));
    double sum = 1e-8;
    for (int64_t j = 0; j < choices; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < experts; ++e) {
        if (taken[static_cast<size_t>(e)]) continue;
        if (best < 0 || probs(t, e) > probs(t, best)) best = e;
      }
      taken[static_cast<size_t>(best)] = true;
      chosen(t, j) = static_cast<double>(best);
      sum += probs(t, best);
    }
    for (int64_t j = 0; j < choices; ++j) {
      weights(t, j) = probs(t, static_cast<int64_t>(chosen(t, j))) / sum;
    }
  }
  probs.StoreTo(probs_out);
  weights.StoreTo(weights_out);
  chosen.StoreTo(experts_out);
}

// With s = sum of the K + 1e-8: dp_j = (dw_j - sum_i dw_i w_i) / s for the chosen, plus dprobs_all
// for all; then the softmax, then the linear layer.
void RouterBackward(const Context& ctx, Tensor dx_out, Tensor dw_out, Tensor db_out,
                    Tensor dweights_in, Tensor dprobs_all_in, Tensor probs_in, Tensor weights_in,
                    Tensor experts_in, Tensor x, Tensor w) {
  const Matrix dweights(dweights_in), probs(probs_in), weights(weights_in), chosen(experts_in);
  const int64_t tokens = probs.rows(), experts = probs.columns(), choices = weights.columns();
  const Matrix dprobs_all = dprobs_all_in.empty() ? Matrix(experts, 1) : Matrix(dprobs_all_in);
  Matrix dlogits(tokens, experts), db(experts, 1);
  for (int64_t t = 0; t < tokens; ++t) {
    double sum = 1e-8, mean = 0;
    for (int64_t j = 0; j < choices; ++j) {
      sum += probs(t, static_cast<int64_t>(chosen(t, j)));
      mean += dweights(t, j) * weights(t, j);
    }
    std::vector<double> dprobs(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) dprobs[static_cast<size_t>(e)] = dprobs_all(e, 0);
    for (int64_t j = 0; j < choices; ++j) {
      dprobs[static_cast<size_t>(chosen(t, j))] += (dweights(t, j) - mean) / sum;
    }
    double dot = 0;
    for (int64_t e = 0; e < experts; ++e) dot += probs(t, e) * dprobs[static_cast<size_t>(e)];
    for (int64_t e = 0; e < experts; ++e) {
      dlogits(t, e) = probs(t, e) * (dprobs[static_cast<size_t>(e)] - dot);
      db(e, 0) += dlogits(t, e);
    }
  }
  Product(dlogits, Matrix(w)).StoreTo(dx_out);
  ProductOfTransposed(dlogits, Matrix(x)).AddTo(dw_out);
  db.AddTo(db_out);
}

void RouterStatistics(const Context& ctx, Tensor prob_sums, Tensor counts, Tensor probs_in,
                      Tensor experts_in) {
  const Matrix probs(probs_in), chosen(experts_in);
  for (int64_t t = 0; t < probs.rows(); ++t) {
    for (int64_t e = 0; e < probs.columns(); ++e) prob_sums.as<double>()[e] += probs(t, e);
    for (int64_t j = 0; j < chosen.columns(); ++j) {
      ++counts.as<int64_t>()[static_cast<int64_t>(chosen(t, j))];
    }
  }
}

}  // namespace ela::kernels::reference
