// Attention layer: out = W_o mix(rope(W_q n(x)), rope(W_k n(x)), W_v n(x)) + what is added.
//
//   n(x) [T, d] = RMSNorm;  q, k, v [T, H, D] = columns of one [T, 3d] product;  y [T, H, D] =
//   mixer
//
// Saved: n(x), q, k, v, y: 5 T d elements; rstd [T] and what the mixer saves. x is read again in
// backward. Parameters: layers.{i}.norm1.weight, layers.{i}.attn.{q,k,v,o}.weight (q, k, v as one).
// With a sharded sequence the exchange of states runs behind the query product (forward; two
// products then, k and v first) and behind W_o's gradient (backward).
#pragma once

#include <memory>

#include "trainer/layers/mixer.h"

namespace ela::trainer {

struct AttentionParameters {
  Parameter norm;  // [d]
  Parameter qkv;   // [3d, d]
  Parameter out;   // [d, d]
};

class AttentionLayer {
 public:
  AttentionLayer(AttentionParameters parameters, std::unique_ptr<Mixer> mixer, int64_t num_heads,
                 double rope_theta);

  /// out [T, d], x [T, d]; x must stay for the backward pass, and layer.positions are those of
  /// `rows`. `added` [T, d] (empty: nothing) is
  /// added to out, and in the backward pass, where it is another, to dx, as residuals want it: in
  /// the ops that write them.
  absl::Status Forward(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                       kernels::Tensor added, const TokenRows& rows);
  /// dx [T, d] overwritten.
  absl::Status Backward(const LayerContext& layer, kernels::Tensor dx, kernels::Tensor dout,
                        kernels::Tensor added, const TokenRows& rows);

  int64_t CacheBytes(const LayerContext& layer, int64_t sequences, int64_t tokens) const {
    return mixer_->CacheBytes(layer, sequences, tokens);
  }
  std::unique_ptr<MixerCache> NewCache(const LayerContext& layer, int64_t sequences) const;
  /// After Forward of `rows`: decoding goes on from there (mixer.h).
  absl::Status FillCache(const LayerContext& layer, const TokenRows& rows, MixerCache* cache) const;
  /// One token of each sequence (mixer.h): out [B, d], x [B, d], `added` as in Forward, positions
  /// [B].
  void Decode(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
              kernels::Tensor added, kernels::Tensor positions, MixerCache* cache) const;

 private:
  AttentionParameters parameters_;
  std::unique_ptr<Mixer> mixer_;
  int64_t num_heads_;
  double rope_theta_;
  kernels::Tensor x_, rstd_, normed_, qkv_, y_;  // saved
};

/// Columns of a [T, 3d] product as heads [T, H, D].
Qkv SplitHeads(kernels::Tensor qkv, int64_t num_heads);

}  // namespace ela::trainer
