// The experts of a few tokens, for decoding: what MoE's routed rows go through (linear, swiglu,
// label_bias, permute), without sorting them. No size depends on which experts the tokens chose, so
// nothing comes to the host, and a recorded step can be replayed (CudaGraph of device.h).
//
//   f = down_e (silu(g) u), [g, u] = up_e x_t;  out_t = sum over the choices of
//     none: w f     inner: w (f + B_e)     outer: w f + B_e
#pragma once

#include <vector>

#include "kernels/context.h"
#include "kernels/label_bias/label_bias.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// out [T, d], x [T, d], weights [T, K] (float) and experts [T, K] (i32, below E) of the choices,
/// up [2F, d] and down [d, F] of each of E experts, labels [E, d] (with kNone any). The sum is in
/// the order of the choices, + added [T, d] unless that is empty (and not out).
void ExpertsForward(const Context& ctx, Tensor out, Tensor x, Tensor weights, Tensor experts,
                    const std::vector<Tensor>& up, const std::vector<Tensor>& down, Tensor labels,
                    LabelBias bias, Tensor added = {});

}  // namespace ela::kernels
