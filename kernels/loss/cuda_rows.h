// The part of the loss between its products, on CUDA.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels::cuda {

/// loss [rows] = -log softmax(logits)[target] of each row, 0 without a target; unless it is null,
/// gradients [rows, n] (of `dtype`, float or bf16) of scale * loss. logits [rows, n], targets
/// [rows]. Rows of logits and of gradients are `stride` elements apart, a multiple of 8; what is
/// past n may be written.
void RunLossOfRows(const Context& ctx, double* loss, void* gradients, const float* logits,
                   const int32_t* targets, int64_t rows, int64_t n, int64_t stride, double scale,
                   DType dtype);

}  // namespace ela::kernels::cuda
