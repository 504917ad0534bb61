// Exact linear attention (arXiv 2605.18848): y_i = sum_j k(q_i, k_j) v_j / sum_j k(q_i, k_j) over
// the tokens i sees, through a state of fixed size. Forward, backward, the states that sequence
// shards exchange, and decode.
//
// State of one head (F features, Dv values): S' = sum_j w(k_j) [v_j, 1], features w relative to a
// gauge: hadamard_exp's running maximum m_d per feature, w_d = e^{k_jd - m_d}; the mean of the keys
// for the squared distances. The last column of S' is the normaliser C. The layout inside a state
// is this folder's own (state.h); others move it as bytes and combine it with ElaFold. A kernel is
// one class: feature_map.h.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

enum class FeatureMap : uint8_t { kHadamardExp, kSumSquared, kSubSquared, kModulatedDot };

struct FeatureMapPair;  // feature_map.h

struct ElaConfig {
  FeatureMap kernel = FeatureMap::kHadamardExp;
  int64_t num_heads = 1;  // H
  int64_t head_dim = 0;   // D, of queries and keys; a multiple of 8 up to 256 on CUDA
  int64_t value_dim = 0;  // Dv
  bool causal = true;
  std::vector<double> log_decay;  // [H] a_h <= 0, added to the log weight per token of distance;
                                  // empty: none. Causal only
  const FeatureMapPair* custom = nullptr;  // a kernel of one's own in place of `kernel`
};

/// The fixed decay rates of `attention.decay: head`: a_h = ln(1 - 2^-x_h), x_h evenly spaced from 2
/// to 9 (H = 1: x = 2).
std::vector<double> HeadLogDecay(int64_t num_heads);

/// How the T rows on this rank fall into runs of attention: span s is rows [begin[s], begin[s+1]),
/// all of one document of one sequence; no row sees another span. Rows of a sequence are
/// contiguous, sequences ascend. A sequence's first span may continue a document from earlier
/// ranks, its last may go on to later ranks.
struct Spans {
  std::vector<int64_t> begin;  // [n + 1], begin[0] = 0, begin[n] = T
  /// [n] index b of the sequence of each span, ascending from 0; every b has at least one span, an
  /// empty one if this rank holds no row of it.
  std::vector<int32_t> sequence;
  int64_t count() const { return static_cast<int64_t>(sequence.size()); }
};

/// Numbers in one sequence's state, all heads; the state tensors below are [B, ElaStateSize], in
/// float (double on the reference back end).
int64_t ElaStateSize(const ElaConfig& config);
/// The state that has seen nothing. Folding with it changes no bit of a state.
void ElaStateIdentity(const Context& ctx, Tensor state, const ElaConfig& config);
/// acc = acc (+) later, per sequence with take[b] != 0 (empty take: all): `later` has seen tokens
/// after those of acc. Associative up to rounding. Gradient states: the same with `reverse`, where
/// `later` has seen tokens *before* those of acc.
/// Causal passes over 2^n ranks with equally many chunks of 64 rows have the same bits as on one
/// rank, if the states of ranks are folded as the balanced tree over them: `before` of a rank is
/// the fold, largest first, of the subtrees left of its path from the root (`gafter`: right).
void ElaFold(const Context& ctx, Tensor acc, Tensor later, const ElaConfig& config,
             const std::vector<uint8_t>& take, bool reverse);

enum class SpanEdge : uint8_t { kFirst, kLast };  // which span of each sequence

/// state [B, S]: what the rows of each sequence's first or last span add up to, from the identity.
/// k [T, H, D], v [T, H, Dv]; rows may be strided (columns of a fused qkv product), as everywhere
/// below.
void ElaLocalState(const Context& ctx, Tensor state, Tensor k, Tensor v, const ElaConfig& config,
                   const Spans& spans, SpanEdge edge);

/// y [T, H, Dv], lse [T, H] (float; log of the denominator, saved for the backward pass). `before`
/// [B, S] is what ranks before this one contribute to each sequence's first span, `after` what
/// later ranks contribute to its last span (bidirectional only); empty: the identity. Finite for
/// any finite q, k, v whose sums of v are: elements of q and k beyond 2^20 count as 2^20.
/// `segments` [ElaSegmentFloats] (float): overwritten by states that ElaBackward can start from.
/// On Hopper NaN or Inf in v, or in dy of a backward pass, reaches all rows of the tiles of 64 that
/// it is loaded with, as 0 Inf, and what sees any of these: also rows before it, and of a document
/// that shares a tile with it.
void ElaForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                Tensor before, Tensor after, const ElaConfig& config, const Spans& spans,
                Tensor segments = {});

/// Of the tensors of a forward pass: floats of the states that a device finds where it cuts long
/// sequences into segments. 0: there are none, and nothing to be saved.
int64_t ElaSegmentFloats(const Context& ctx, Tensor y, Tensor q, Tensor k, Tensor v,
                         const ElaConfig& config, const Spans& spans);

/// gstate [B, S]: the gradient state of each sequence's first or last span (model.md 1.2: reverse
/// scan), from the identity.
void ElaLocalGradState(const Context& ctx, Tensor gstate, Tensor dy, Tensor q, Tensor y, Tensor lse,
                       const ElaConfig& config, const Spans& spans, SpanEdge edge);

/// dq, dk [T, H, D], dv [T, H, Dv] overwritten (may be strided). `before`/`after` as in ElaForward;
/// `gbefore`/`gafter`: the gradient states of the ranks before (bidirectional only) and after this
/// one. `segments`: what ElaForward left of the same tensors, or empty: found again.
void ElaBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy, Tensor q, Tensor k,
                 Tensor v, Tensor y, Tensor lse, Tensor before, Tensor after, Tensor gbefore,
                 Tensor gafter, const ElaConfig& config, const Spans& spans, Tensor segments = {});

/// One token of each of B sequences: state [B, S] takes k [B, H, D] and v [B, H, Dv] in, then y [B,
/// H, Dv] is read out with q [B, H, D]. O(1) in the context length.
void ElaDecode(const Context& ctx, Tensor y, Tensor state, Tensor q, Tensor k, Tensor v,
               const ElaConfig& config);

/// chunks [1] (int64) += the chunks of rows that took the slower exact path because keys grow too
/// much in them, since the last call with this context (on CUDA: with this device).
void ElaTakeSlowPathChunks(const Context& ctx, Tensor chunks);

}  // namespace ela::kernels
