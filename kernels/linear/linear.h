// y = x W^T, and the ragged product of experts: rows [offsets[e], offsets[e+1]) meet weight e.
#pragma once

#include <vector>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// y [T, out] = x [T, in] w [out, in]^T, + added [T, out] unless that is empty (and not y). Rows
/// may be strided.
void LinearForward(const Context& ctx, Tensor y, Tensor x, Tensor w, Tensor added = {});
/// dx [T, in] = dy w (empty: not wanted); dw [out, in] += dy^T x (empty: not wanted).
void LinearBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w);

/// y [R, out], x [R, in], w [E, out, in] as one tensor per expert; offsets [E + 1] with offsets[E]
/// = R; `added` as above. An expert may have no row. On the CPU, from R = 48 on, the bits of y's
/// row i of an expert (the i-th of its own) depend on i and the row alone: not on how many tokens
/// follow it there.
void GroupedLinearForward(const Context& ctx, Tensor y, Tensor x, const std::vector<Tensor>& w,
                          const std::vector<int64_t>& offsets, Tensor added = {});
void GroupedLinearBackward(const Context& ctx, Tensor dx, const std::vector<Tensor>& dw, Tensor dy,
                           Tensor x, const std::vector<Tensor>& w,
                           const std::vector<int64_t>& offsets);

}  // namespace ela::kernels
