// Softmax attention on Hopper's own instructions: bf16, head dims 64 and 128.
#pragma once

#include <initializer_list>

#include "kernels/context.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "kernels/tensor.h"

namespace ela::kernels::cuda::softmax {

/// Places of rows as they are on the device.
struct RowPlaces {
  const int32_t* document = nullptr;
  const int32_t* position = nullptr;
  int64_t count = 0;
};

/// Whether the card, the config, what is read by the copy engine and what is written in pairs fit
/// the functions below.
bool HopperApplies(std::initializer_list<Tensor> inputs, std::initializer_list<Tensor> outputs,
                   const SoftmaxAttentionConfig& config);

/// SoftmaxAttentionForward of checked shapes with queries and keys. Where 64 queries see a part of
/// a tile of 128 keys, NaN or Inf in v of the others reaches them too, as 0 Inf. Scratch: 8 bytes a
/// row of either side in whole tiles, and at most 44 bytes a tile.
void RunHopperForward(const Context& ctx, const Tensor& y, const Tensor& lse, const Tensor& q,
                      const Tensor& k, const Tensor& v, const RowPlaces& queries,
                      const RowPlaces& keys, const SoftmaxAttentionConfig& config);

struct HopperBackward {
  Tensor dq, dk, dv, dy, q, k, v, lse, delta;
};

/// SoftmaxAttentionBackward of checked shapes with queries and keys. Scratch: the same, 4 D + 8
/// bytes a row and head of queries in whole tiles, and 4 bytes a tile and head.
void RunHopperBackward(const Context& ctx, const HopperBackward& op, const RowPlaces& queries,
                       const RowPlaces& keys, const SoftmaxAttentionConfig& config);

}  // namespace ela::kernels::cuda::softmax
