// AdamW (decoupled weight decay) over flat float buffers, and the norm the clipping needs.
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

struct AdamWConfig {
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  double grad_scale = 1;  // clip coefficient
  int64_t step = 1;       // from 1: bias correction
};

/// master, m, v [n] (float) updated from grad [n] (float); param [n] (float or bf16; may be master
/// itself) receives the new value.
void AdamWUpdate(const Context& ctx, Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad,
                 const AdamWConfig& config);

/// out [1] (f64) += sum of x_i^2 in double, fixed order. NaN and Inf pass through.
void SumOfSquares(const Context& ctx, Tensor out, Tensor x);

}  // namespace ela::kernels
