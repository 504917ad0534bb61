#include "trainer/layers/residual_layer.h"

#include <utility>

#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

void LayerCache::Reserve(const LayerContext& layer, int64_t tokens) {
  attention->Reserve(layer, tokens);
  if (lobe != nullptr) lobe->Reserve(layer, tokens);
}

LayerCache LayerCache::Repeated(const LayerContext& layer, int64_t sequences) const {
  return {attention->Repeated(layer, sequences),
          lobe == nullptr ? nullptr : lobe->Repeated(layer, sequences)};
}

ResidualLayer::ResidualLayer(std::unique_ptr<AttentionLayer> attention,
                             std::unique_ptr<MoeLayer> moe, std::unique_ptr<MemoryLobe> lobe)
    : attention_(std::move(attention)), moe_(std::move(moe)), lobe_(std::move(lobe)) {}

int64_t ResidualLayer::CacheBytes(const LayerContext& layer, int64_t sequences,
                                  int64_t tokens) const {
  return attention_->CacheBytes(layer, sequences, tokens) +
         (lobe_ == nullptr ? 0 : lobe_->CacheBytes(layer, sequences, tokens));
}

LayerCache ResidualLayer::NewCache(const LayerContext& layer, int64_t sequences) const {
  LayerCache cache;
  cache.attention = attention_->NewCache(layer, sequences);
  if (lobe_ != nullptr) cache.lobe = lobe_->NewCache(layer, sequences);
  return cache;
}

absl::Status ResidualLayer::FillCache(const LayerContext& layer, const TokenRows& rows,
                                      LayerCache* cache) const {
  ELA_RETURN_IF_ERROR(attention_->FillCache(layer, rows, cache->attention.get()));
  return lobe_ == nullptr ? absl::OkStatus() : lobe_->FillCache(layer, rows, cache->lobe.get());
}

absl::Status ResidualLayer::AddLobe(const LayerContext& layer, Tensor out, Tensor f,
                                    const TokenRows& rows) {
  if (lobe_ == nullptr) return absl::OkStatus();
  const Tensor y = layer.Saved({f.dim(0), f.dim(1)});
  ELA_RETURN_IF_ERROR(lobe_->Forward(layer, y, f, rows));
  kernels::Add(layer.ctx, out, out, y);
  return absl::OkStatus();
}

void ResidualLayer::DecodeLobe(const LayerContext& layer, Tensor out, Tensor f, Tensor positions,
                               LayerCache* cache) {
  if (lobe_ == nullptr) return;
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const Tensor y = layer.Scratch({f.dim(0), f.dim(1)});
  lobe_->Decode(layer, y, f, positions, cache->lobe.get());
  kernels::Add(layer.ctx, out, out, y);
}

absl::StatusOr<Tensor> ResidualLayer::LobeBackward(const LayerContext& layer, Tensor dout,
                                                   const TokenRows& rows) {
  if (lobe_ == nullptr) return dout;
  const Tensor df = layer.Scratch({dout.dim(0), dout.dim(1)});
  ELA_RETURN_IF_ERROR(lobe_->Backward(layer, df, dout, rows));
  kernels::Add(layer.ctx, df, df, dout);
  return df;
}

PreNormLayer::PreNormLayer(std::unique_ptr<AttentionLayer> attention, std::unique_ptr<MoeLayer> moe,
                           std::unique_ptr<MemoryLobe> lobe, Parameter norm2)
    : ResidualLayer(std::move(attention), std::move(moe), std::move(lobe)),
      norm2_(std::move(norm2)) {}

absl::Status PreNormLayer::Forward(const LayerContext& layer, Tensor out, Tensor x,
                                   const TokenRows& rows) {
  const int64_t t = x.dim(0), d = x.dim(1);
  x1_ = layer.Saved({t, d});
  rstd_ = layer.SavedStatistic({t});
  const Tensor normed = layer.Saved({t, d});

  ELA_RETURN_IF_ERROR(attention_->Forward(layer, x1_, x, /*added=*/x, rows));
  kernels::RmsNormForward(layer.ctx, normed, rstd_, x1_, norm2_.value);
  if (lobe_ == nullptr) return moe_->Forward(layer, out, normed, /*added=*/x1_);
  const Tensor f = layer.Saved({t, d});
  ELA_RETURN_IF_ERROR(moe_->Forward(layer, f, normed));
  kernels::Add(layer.ctx, out, x1_, f);
  return AddLobe(layer, out, f, rows);
}

absl::Status PreNormLayer::Backward(const LayerContext& layer, Tensor dx, Tensor dout,
                                    Tensor dprobs, const TokenRows& rows) {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const int64_t t = dx.dim(0), d = dx.dim(1);
  const Tensor dnormed = layer.Scratch({t, d}), dx1 = layer.Scratch({t, d});

  ELA_ASSIGN_OR_RETURN(const Tensor df, LobeBackward(layer, dout, rows));
  ELA_RETURN_IF_ERROR(moe_->Backward(layer, dnormed, df, dprobs));
  kernels::RmsNormBackward(layer.ctx, dx1, norm2_.grad, dnormed, x1_, norm2_.value, rstd_,
                           /*added=*/dout);
  return attention_->Backward(layer, dx, dx1, /*added=*/dx1, rows);
}

void PreNormLayer::Decode(const LayerContext& layer, Tensor out, Tensor x, Tensor positions,
                          LayerCache* cache) {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const int64_t b = x.dim(0), d = x.dim(1);
  const Tensor x1 = layer.Scratch({b, d}), normed = layer.Scratch({b, d});
  const Tensor rstd = layer.ScratchStatistic({b});

  attention_->Decode(layer, x1, x, /*added=*/x, positions, cache->attention.get());
  kernels::RmsNormForward(layer.ctx, normed, rstd, x1, norm2_.value);
  if (lobe_ == nullptr) return moe_->Decode(layer, out, normed, /*added=*/x1);
  const Tensor f = layer.Scratch({b, d});
  moe_->Decode(layer, f, normed);
  kernels::Add(layer.ctx, out, x1, f);
  DecodeLobe(layer, out, f, positions, cache);
}

absl::Status HyperLinkLayer::Forward(const LayerContext& layer, Tensor out, Tensor x,
                                     const TokenRows& rows) {
  const int64_t t = x.dim(0), d = x.dim(1);
  const Tensor a = layer.Saved({t, d}), f = layer.Saved({t, d});

  ELA_RETURN_IF_ERROR(attention_->Forward(layer, a, x, /*added=*/{}, rows));
  ELA_RETURN_IF_ERROR(moe_->Forward(layer, f, a, /*added=*/a));
  kernels::Add(layer.ctx, out, x, f);
  return AddLobe(layer, out, f, rows);
}

absl::Status HyperLinkLayer::Backward(const LayerContext& layer, Tensor dx, Tensor dout,
                                      Tensor dprobs, const TokenRows& rows) {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const int64_t t = dx.dim(0), d = dx.dim(1);
  const Tensor da = layer.Scratch({t, d});

  ELA_ASSIGN_OR_RETURN(const Tensor df, LobeBackward(layer, dout, rows));
  ELA_RETURN_IF_ERROR(moe_->Backward(layer, da, df, dprobs));
  kernels::Add(layer.ctx, da, da, df);
  return attention_->Backward(layer, dx, da, /*added=*/dout, rows);
}

void HyperLinkLayer::Decode(const LayerContext& layer, Tensor out, Tensor x, Tensor positions,
                            LayerCache* cache) {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const int64_t b = x.dim(0), d = x.dim(1);
  const Tensor a = layer.Scratch({b, d}), f = layer.Scratch({b, d});

  attention_->Decode(layer, a, x, /*added=*/{}, positions, cache->attention.get());
  moe_->Decode(layer, f, a, /*added=*/a);
  kernels::Add(layer.ctx, out, x, f);
  DecodeLobe(layer, out, f, positions, cache);
}

}  // namespace ela::trainer
