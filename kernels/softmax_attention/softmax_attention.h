// Softmax attention of the hybrid layers: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j, exact,
// tiled with an online softmax (never L x L in memory). Partial results over key blocks merge by
// their LSE, which is what the sequence-parallel ring needs.
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// Rows of queries against rows of keys. Query row i and key row j meet when they are of the same
/// document and (causal) key_position[j] <= query_position[i]. Document ids and positions let a
/// ring pass any slice of keys.
struct SoftmaxAttentionConfig {
  int64_t num_heads = 1;
  int64_t head_dim = 0;
  bool causal = true;
};

/// One key block folded into the running result: y [Tq, H, D] and lse [Tq, H] (float; -inf: nothing
/// seen) are updated; rows that meet no key of the block keep their bits. Start with y = 0, lse =
/// -inf. q [Tq, H, D], k, v [Tk, H, D]; q_document, k_document (i32, [T]): unique ids of documents
/// within the batch; q_position, k_position (i32, [T]). Rows of q, k, v and their gradients may be
/// strided. y may be float where q is bf16, so that a running result is rounded once at the end.
void SoftmaxAttentionForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                             Tensor q_document, Tensor k_document, Tensor q_position,
                             Tensor k_position, const SoftmaxAttentionConfig& config);

/// y, lse: the result over more keys, from those over two sets of keys that don't overlap; y and
/// part_y [T, H, D] of one type, lse and part_lse [T, H]. Rows whose part met nothing keep their
/// bits.
void SoftmaxAttentionMerge(const Context& ctx, Tensor y, Tensor lse, Tensor part_y,
                           Tensor part_lse);

/// Decoding, one token of each of B sequences: k and v [B, H, D] become row positions[b] of the
/// sequence's keys and values [B, C, H, D] (C rows of room; dense), and y [B, H, D] is the
/// attention of q [B, H, D] over rows 0 to positions[b]. positions (i32, [B]) are below C. Rows of
/// y, q, k and v may be strided; all of one type. The bits depend on neither B nor C.
void SoftmaxAttentionDecode(const Context& ctx, Tensor y, Tensor keys, Tensor values, Tensor q,
                            Tensor k, Tensor v, Tensor positions,
                            const SoftmaxAttentionConfig& config);

/// Adds the contribution of one key block: dq, dk, dv are added to (zero them first), each float or
/// of q's type. lse: of all blocks; delta [Tq, H] = dy . y (float).
void SoftmaxAttentionBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy,
                              Tensor q, Tensor k, Tensor v, Tensor lse, Tensor delta,
                              Tensor q_document, Tensor k_document, Tensor q_position,
                              Tensor k_position, const SoftmaxAttentionConfig& config);

/// Of the back ends: ends the process if a tensor of SoftmaxAttentionDecode has another shape.
void CheckDecodeShapes(const Tensor& y, const Tensor& keys, const Tensor& values, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& positions,
                       const SoftmaxAttentionConfig& config);

}  // namespace ela::kernels
