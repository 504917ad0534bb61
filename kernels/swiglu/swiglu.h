// SwiGLU: h = silu(g) * u with [g, u] the two halves of each row.
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// h [R, F], gu [R, 2F].
void SwigluForward(const Context& ctx, Tensor h, Tensor gu);
/// dgu [R, 2F] overwritten.
void SwigluBackward(const Context& ctx, Tensor dgu, Tensor dh, Tensor gu);

}  // namespace ela::kernels
