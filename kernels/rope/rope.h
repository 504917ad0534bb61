// Rotary position embedding, in place: pairs (2i, 2i+1) of each head turn by position *
// theta^(-2i/D).
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// x [T, H, D], D even; rows may be strided. positions [T] (i32). `inverse` turns back: the
/// backward pass.
void Rope(const Context& ctx, Tensor x, Tensor positions, double theta, bool inverse);

}  // namespace ela::kernels
