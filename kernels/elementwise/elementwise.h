// Small ops whose time is that of moving their bytes.
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
/// index [T] (i32) = the column of each row's largest number, the first of equals; x [T, n], n > 0.
/// NaNs are passed over; a row of nothing else: 0.
void RowArgmax(const Context& ctx, Tensor index, Tensor x);
/// dots [T, H] (float) = sums over the last dimension of a b; a, b [T, H, D], rows may be strided.
void RowDots(const Context& ctx, Tensor dots, Tensor a, Tensor b);

}  // namespace ela::kernels
