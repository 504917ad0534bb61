// Memory Lobe (model.md 2.2): y = ELA(W_q z, W_k z, W_v z), z = RMSNorm(f) or f itself; no RoPE, no
// output projection, its own heads; causal or bidirectional.
//
// Saved: z (with a norm), q, k, v: 3 or 4 T d elements, rstd [T] and what the mixer saves; the
// caller's f and y are read again. Parameters: layers.{i}.lobe.norm.weight (with a norm),
// layers.{i}.lobe.{q,k,v}.weight as one.
#pragma once

#include <memory>

#include "trainer/layers/mixer.h"

namespace ela::trainer {

struct MemoryLobeParameters {
  Parameter norm;  // [d]; empty: no norm
  Parameter qkv;   // [3d, d]
};

class MemoryLobe {
 public:
  MemoryLobe(MemoryLobeParameters parameters, std::unique_ptr<Mixer> mixer, int64_t num_heads);

  /// y [T, d], f [T, d]; both must stay for the backward pass.
  absl::Status Forward(const LayerContext& layer, kernels::Tensor y, kernels::Tensor f,
                       const TokenRows& rows);
  /// df [T, d] overwritten.
  absl::Status Backward(const LayerContext& layer, kernels::Tensor df, kernels::Tensor dy,
                        const TokenRows& rows);

  int64_t CacheBytes(const LayerContext& layer, int64_t sequences, int64_t tokens) const {
    return mixer_->CacheBytes(layer, sequences, tokens);
  }
  std::unique_ptr<MixerCache> NewCache(const LayerContext& layer, int64_t sequences) const;
  /// After Forward of `rows`: decoding goes on from there (mixer.h).
  absl::Status FillCache(const LayerContext& layer, const TokenRows& rows, MixerCache* cache) const;
  /// One token of each sequence (causal lobes; mixer.h): y [B, d], f [B, d], positions [B].
  void Decode(const LayerContext& layer, kernels::Tensor y, kernels::Tensor f,
              kernels::Tensor positions, MixerCache* cache) const;

 private:
  MemoryLobeParameters parameters_;
  std::unique_ptr<Mixer> mixer_;
  int64_t num_heads_;
  kernels::Tensor f_, rstd_, z_, qkv_, y_;  // saved
};

}  // namespace ela::trainer
