// Router of the mixture of experts: probs = softmax(x W^T + b) in float; the K largest (ties: the
// lower expert id) with weights w_j = probs_j / (sum of the K + 1e-8).
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// probs [T, E] and weights [T, K] (float), experts [T, K] (i32, by descending probability); x [T,
/// d], w [E, d], b [E].
void RouterForward(const Context& ctx, Tensor probs, Tensor weights, Tensor experts, Tensor x,
                   Tensor w, Tensor b);

/// dx [T, d] overwritten; dw [E, d], db [E] added to; dweights [T, K] (float). `dprobs_all` [E]
/// (float; may be empty) is added to the gradient of every token's probabilities: the balance loss
/// is linear in them.
void RouterBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dweights,
                    Tensor dprobs_all, Tensor probs, Tensor weights, Tensor experts, Tensor x,
                    Tensor w);

/// prob_sums [E] (f64) += column sums of probs; counts [E] (i64) += tokens that chose each expert.
void RouterStatistics(const Context& ctx, Tensor prob_sums, Tensor counts, Tensor probs,
                      Tensor experts);

}  // namespace ela::kernels
