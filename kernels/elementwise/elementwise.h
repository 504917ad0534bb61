// Small ops that only move bytes.
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// y = a + b; y may be a or b.
void Add(const Context& ctx, Tensor y, Tensor a, Tensor b);
/// x = value.
void Fill(const Context& ctx, Tensor x, double value);
/// y = x, converting the element type; shapes equal.
void Copy(const Context& ctx, Tensor y, Tensor x);
/// x *= factor.
void Scale(const Context& ctx, Tensor x, double factor);
/// dots [T, H] (float) = sums over the last dimension of a b; a, b [T, H, D], rows may be strided.
void RowDots(const Context& ctx, Tensor dots, Tensor a, Tensor b);

}  // namespace ela::kernels
