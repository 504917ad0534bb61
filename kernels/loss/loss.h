// Logits and cross-entropy, fused and chunked over the vocabulary: no [T, V] tensor ever exists.
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// loss_sum [1] (f64) += sum over valid targets of -log softmax(x table^T)[target], tokens in
/// order. With dx and dtable: dx [T, d] overwritten and dtable [V, d] added to with the gradient of
/// scale * loss_sum. targets [T] (i32; < 0: no target, gradient row 0). x [T, d], table [V, d].
void LossForwardBackward(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                         Tensor table, Tensor targets, double scale);

/// logprob [T] (float; 0 where there is no target) of each target.
void TokenLogprobs(const Context& ctx, Tensor logprob, Tensor x, Tensor table, Tensor targets);

}  // namespace ela::kernels
