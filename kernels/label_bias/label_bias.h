// The weighted output of an expert with its label vector B_e (model.md 2.1), on rows sorted by
// expert:
//   none: y = w f     inner: y = w (f + B_e)     outer: y = w f + B_e
#pragma once

#include <vector>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

enum class LabelBias : uint8_t { kNone, kInner, kOuter };

/// y [R, d], f [R, d], w [R] (float), labels [E, d] for the experts of `offsets` [E + 1].
void LabelBiasForward(const Context& ctx, Tensor y, Tensor f, Tensor w, Tensor labels,
                      const std::vector<int64_t>& offsets, LabelBias bias);
/// df [R, d] and dw [R] (float) overwritten, dlabels [E, d] added to.
void LabelBiasBackward(const Context& ctx, Tensor df, Tensor dw, Tensor dlabels, Tensor dy,
                       Tensor f, Tensor w, Tensor labels, const std::vector<int64_t>& offsets,
                       LabelBias bias);

}  // namespace ela::kernels
