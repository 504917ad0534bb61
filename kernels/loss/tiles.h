// How the loss is cut into tiles on a device. The memory plan (proto/job/memory.cc) says the same.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// Rows of logits (float) and of their gradients (of the type of x) that exist at a time, and the
/// elements from one row to the next, in both: the vocabulary up to a multiple of 16 bytes.
struct LossTiles {
  int64_t stride = 0, logit_rows = 0, gradient_rows = 0;
};

/// Gradients take more rows than logits, a whole number of times as many: each of their tiles is
/// read by two products, which run the better the more rows there are, and the table's gradient is
/// read and written once a tile. Both together are of at most 384 MiB, or of the fewest rows that
/// pay for reading the table.
inline LossTiles LossTilesFor(int64_t tokens, int64_t vocabulary, int64_t element_bytes) {
  constexpr int64_t kBytes = int64_t{384} << 20, kLogitBytes = int64_t{128} << 20;
  const int64_t stride = (vocabulary + 7) / 8 * 8;
  const int64_t logit_row = stride * 4, gradient_row = stride * element_bytes;
  const int64_t fewest = 256 / element_bytes;
  const int64_t logits = std::max(fewest, kLogitBytes / logit_row / 128 * 128);
  const int64_t left = (kBytes - logits * logit_row) / gradient_row;
  const int64_t gradients = std::max<int64_t>(1, left / logits) * logits;
  return {stride, std::min(tokens, logits), std::min(tokens, gradients)};
}

namespace cuda {

/// LossForwardBackward by given tiles; stride a multiple of 8.
void LossByTiles(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                 Tensor table, Tensor targets, double scale, const LossTiles& tiles);

}  // namespace cuda

}  // namespace ela::kernels
