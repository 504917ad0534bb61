// Mixers: what lets a token see others. An attention layer and a Memory Lobe differ in their
// projections; the mixing between them is one of these: exact linear attention (ela_mixer.h) or
// softmax attention (softmax_mixer.h).
//
// Each pass comes in two halves, so that the exchange between the sequence shards runs behind
// whatever the layer can do meanwhile. Between the halves the scratch stays taken: the layer opens
// one ArenaScope around both.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/tensor.h"
#include "trainer/layers/layer_context.h"
#include "trainer/layers/token_rows.h"

namespace ela::trainer {

/// What decoding carries from token to token, in the memory of the back end.
struct MixerCache {
  virtual ~MixerCache() = default;
  /// Room for so many tokens of each sequence; what they have seen stays. The addresses change
  /// where CacheBytes grows with the tokens; until then the old memory is held beside the new.
  virtual void Reserve(const LayerContext& layer, int64_t tokens) = 0;
  /// Of a cache of one sequence: so many sequences, each of which has seen the same.
  virtual std::unique_ptr<MixerCache> Repeated(const LayerContext& layer,
                                               int64_t sequences) const = 0;
};

/// Queries, keys and values [T, H, D]; rows may be strided.
struct Qkv {
  kernels::Tensor q, k, v;
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  /// Whether shards exchange anything: if not, there is nothing to compute behind it.
  virtual bool exchanges() const = 0;
  /// Starts the exchange of what k and v export.
  virtual absl::Status StartForward(const LayerContext& layer, const Qkv& in,
                                    const TokenRows& rows) = 0;
  /// y [T, H, D]. y and `in` must stay for the backward pass.
  virtual absl::Status FinishForward(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
                                     const TokenRows& rows) = 0;
  virtual absl::Status StartBackward(const LayerContext& layer, kernels::Tensor dy,
                                     kernels::Tensor y, const Qkv& in, const TokenRows& rows) = 0;
  /// Overwrites the gradients `din`.
  virtual absl::Status FinishBackward(const LayerContext& layer, const Qkv& din, kernels::Tensor dy,
                                      kernels::Tensor y, const Qkv& in, const TokenRows& rows) = 0;

  /// Of a cache of so many sequences with room for so many tokens each.
  virtual int64_t CacheBytes(const LayerContext& layer, int64_t sequences,
                             int64_t tokens) const = 0;
  /// Decoding (causal mixers): a cache that has seen nothing, for B sequences; room for no token.
  virtual std::unique_ptr<MixerCache> NewCache(const LayerContext& layer, int64_t sequences) = 0;
  /// After FinishForward, `in` and `rows` as they were there, one document a sequence. Collective
  /// over the shards; the last one's cache then has seen all tokens, the others' are of no use.
  virtual absl::Status FillCache(const LayerContext& layer, const Qkv& in, const TokenRows& rows,
                                 MixerCache* cache) = 0;
  /// One token of each of B sequences: y [B, H, D]; positions [B]: the tokens that each has seen,
  /// fewer than there is room for. Launches the same for any of them.
  virtual void Decode(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
                      kernels::Tensor positions, MixerCache* cache) = 0;
};

}  // namespace ela::trainer
