// One decoder layer: attention, experts and Memory Lobe under one of two residual forms (model.md
// 2).
//
//   pre_norm    x1 = x + Attention(x);  f = MoE(n2(x1));       x' = x1 + f + Lobe(f)
//   hyper_link  a  = Attention(x);      f = a + MoE(a);        x' = x + f + Lobe(f)
//
// Saved beside what the parts save: pre_norm x1, n2(x1), f and rstd [T]; hyper_link a and f; with a
// lobe its output: 2 to 4 T d elements. x is read again in backward.
#pragma once

#include <memory>

#include "trainer/layers/attention.h"
#include "trainer/layers/memory_lobe.h"
#include "trainer/layers/moe.h"

namespace ela::trainer {

/// What decoding carries through one layer.
struct LayerCache {
  std::unique_ptr<MixerCache> attention, lobe;
  // As those of MixerCache.
  void Reserve(const LayerContext& layer, int64_t tokens);
  LayerCache Repeated(const LayerContext& layer, int64_t sequences) const;
};

class ResidualLayer {
 public:
  ResidualLayer(std::unique_ptr<AttentionLayer> attention, std::unique_ptr<MoeLayer> moe,
                std::unique_ptr<MemoryLobe> lobe);  // lobe may be null
  virtual ~ResidualLayer() = default;

  /// out [T, d], x [T, d]; both must stay for the backward pass.
  virtual absl::Status Forward(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                               const TokenRows& rows) = 0;
  /// dx [T, d] overwritten; dprobs as in MoeLayer::Backward.
  virtual absl::Status Backward(const LayerContext& layer, kernels::Tensor dx, kernels::Tensor dout,
                                kernels::Tensor dprobs, const TokenRows& rows) = 0;
  /// One token of each of B sequences (mixer.h): out [B, d], x [B, d], positions [B].
  virtual void Decode(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                      kernels::Tensor positions, LayerCache* cache) = 0;

  int64_t CacheBytes(const LayerContext& layer, int64_t sequences, int64_t tokens) const;
  LayerCache NewCache(const LayerContext& layer, int64_t sequences) const;
  /// After Forward of `rows`: decoding goes on from there (mixer.h).
  absl::Status FillCache(const LayerContext& layer, const TokenRows& rows, LayerCache* cache) const;
  const MoeLayer& moe() const { return *moe_; }

 protected:
  /// out += Lobe(f), if there is one.
  absl::Status AddLobe(const LayerContext& layer, kernels::Tensor out, kernels::Tensor f,
                       const TokenRows& rows);
  void DecodeLobe(const LayerContext& layer, kernels::Tensor out, kernels::Tensor f,
                  kernels::Tensor positions, LayerCache* cache);
  /// dout + the lobe's gradient, from the scratch; dout itself where there is no lobe.
  absl::StatusOr<kernels::Tensor> LobeBackward(const LayerContext& layer, kernels::Tensor dout,
                                               const TokenRows& rows);

  std::unique_ptr<AttentionLayer> attention_;
  std::unique_ptr<MoeLayer> moe_;
  std::unique_ptr<MemoryLobe> lobe_;
};

class PreNormLayer : public ResidualLayer {
 public:
  PreNormLayer(std::unique_ptr<AttentionLayer> attention, std::unique_ptr<MoeLayer> moe,
               std::unique_ptr<MemoryLobe> lobe, Parameter norm2);
  absl::Status Forward(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                       const TokenRows& rows) override;
  absl::Status Backward(const LayerContext& layer, kernels::Tensor dx, kernels::Tensor dout,
                        kernels::Tensor dprobs, const TokenRows& rows) override;
  void Decode(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
              kernels::Tensor positions, LayerCache* cache) override;

 private:
  Parameter norm2_;            // layers.{i}.norm2.weight [d]
  kernels::Tensor x1_, rstd_;  // saved
};

class HyperLinkLayer : public ResidualLayer {
 public:
  using ResidualLayer::ResidualLayer;
  absl::Status Forward(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                       const TokenRows& rows) override;
  absl::Status Backward(const LayerContext& layer, kernels::Tensor dx, kernels::Tensor dout,
                        kernels::Tensor dprobs, const TokenRows& rows) override;
  void Decode(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
              kernels::Tensor positions, LayerCache* cache) override;
};

}  // namespace ela::trainer
