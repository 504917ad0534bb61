// RMSNorm with gain: y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + 1e-6), statistics in float
// (double on the reference).
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

inline constexpr double kRmsNormEps = 1e-6;

/// y [T, d], rstd [T] (float; saved), x [T, d], gain [d].
void RmsNormForward(const Context& ctx, Tensor y, Tensor rstd, Tensor x, Tensor gain);
/// dx [T, d] overwritten: the gradient, + added [T, d] unless that is empty (and not dx); dgain [d]
/// added to.
void RmsNormBackward(const Context& ctx, Tensor dx, Tensor dgain, Tensor dy, Tensor x, Tensor gain,
                     Tensor rstd, Tensor added = {});

}  // namespace ela::kernels
