#include "trainer/layers/memory_lobe.h"

#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/layers/attention.h"

namespace ela::trainer {

using kernels::Tensor;

MemoryLobe::MemoryLobe(MemoryLobeParameters parameters, std::unique_ptr<Mixer> mixer,
                       int64_t num_heads)
    : parameters_(std::move(parameters)), mixer_(std::move(mixer)), num_heads_(num_heads) {}

absl::Status MemoryLobe::Forward(const LayerContext& layer, Tensor y, Tensor f,
                                 const TokenRows& rows) {
  const kernels::TraceRange range("MemoryLobe::Forward");
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = f.dim(0), d = f.dim(1);
  const Tensor w = parameters_.qkv.value;
  f_ = z_ = f;
  y_ = y.View({t, num_heads_, d / num_heads_});
  qkv_ = layer.Saved({t, 3 * d});
  const Qkv in = SplitHeads(qkv_, num_heads_);
  const auto project = [&](int64_t begin, int64_t end) {
    kernels::LinearForward(ctx, qkv_.Columns(begin, end), z_, w.Rows(begin, end));
  };
  const int64_t first = mixer_->exchanges() ? d : 0;  // queries last, while k and v travel

  if (!parameters_.norm.value.empty()) {
    rstd_ = layer.SavedStatistic({t});
    z_ = layer.Saved({t, d});
    kernels::RmsNormForward(ctx, z_, rstd_, f, parameters_.norm.value);
  }
  project(first, 3 * d);
  ELA_RETURN_IF_ERROR(mixer_->StartForward(layer, in, rows));
  if (first > 0) project(0, first);
  return mixer_->FinishForward(layer, y_, in, rows);
}

absl::Status MemoryLobe::Backward(const LayerContext& layer, Tensor df, Tensor dy,
                                  const TokenRows& rows) {
  const kernels::TraceRange range("MemoryLobe::Backward");
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = df.dim(0), d = df.dim(1);
  const Tensor dqkv = layer.Scratch({t, 3 * d});
  const Tensor dy_heads = dy.View({t, num_heads_, d / num_heads_});
  const Qkv in = SplitHeads(qkv_, num_heads_), din = SplitHeads(dqkv, num_heads_);
  const bool norm = !parameters_.norm.value.empty();
  const Tensor dz = norm ? layer.Scratch({t, d}) : df;

  ELA_RETURN_IF_ERROR(mixer_->StartBackward(layer, dy_heads, y_, in, rows));
  ELA_RETURN_IF_ERROR(mixer_->FinishBackward(layer, din, dy_heads, y_, in, rows));
  kernels::LinearBackward(ctx, dz, parameters_.qkv.grad, dqkv, z_, parameters_.qkv.value);
  if (norm) {
    kernels::RmsNormBackward(ctx, df, parameters_.norm.grad, dz, f_, parameters_.norm.value, rstd_);
  }
  return absl::OkStatus();
}

std::unique_ptr<MixerCache> MemoryLobe::NewCache(const LayerContext& layer,
                                                 int64_t sequences) const {
  return mixer_->NewCache(layer, sequences);
}

absl::Status MemoryLobe::FillCache(const LayerContext& layer, const TokenRows& rows,
                                   MixerCache* cache) const {
  return mixer_->FillCache(layer, SplitHeads(qkv_, num_heads_), rows, cache);
}

void MemoryLobe::Decode(const LayerContext& layer, Tensor y, Tensor f, Tensor positions,
                        MixerCache* cache) const {
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t b = f.dim(0), d = f.dim(1);
  const Tensor rstd = layer.ScratchStatistic({b});
  const Tensor normed = layer.Scratch({b, d});
  const Tensor qkv = layer.Scratch({b, 3 * d});
  const bool norm = !parameters_.norm.value.empty();

  if (norm) kernels::RmsNormForward(ctx, normed, rstd, f, parameters_.norm.value);
  kernels::LinearForward(ctx, qkv, norm ? normed : f, parameters_.qkv.value);
  mixer_->Decode(layer, y.View({b, num_heads_, d / num_heads_}), SplitHeads(qkv, num_heads_),
                 positions, cache);
}

}  // namespace ela::trainer
