#include "trainer/layers/attention.h"

#include <algorithm>
#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

Qkv SplitHeads(Tensor qkv, int64_t num_heads) {
  const int64_t rows = qkv.dim(0), d = qkv.dim(1) / 3;
  auto heads = [&](int64_t i) {
    return qkv.Columns(i * d, (i + 1) * d).View({rows, num_heads, d / num_heads});
  };
  return {heads(0), heads(1), heads(2)};
}

AttentionLayer::AttentionLayer(AttentionParameters parameters, std::unique_ptr<Mixer> mixer,
                               int64_t num_heads, double rope_theta)
    : parameters_(std::move(parameters)),
      mixer_(std::move(mixer)),
      num_heads_(num_heads),
      rope_theta_(rope_theta) {}

absl::Status AttentionLayer::Forward(const LayerContext& layer, Tensor out, Tensor x, Tensor added,
                                     const TokenRows& rows) {
  const kernels::TraceRange range("AttentionLayer::Forward");
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = x.dim(0), d = x.dim(1);
  const Tensor w = parameters_.qkv.value;
  x_ = x;
  rstd_ = layer.SavedStatistic({t});
  normed_ = layer.Saved({t, d});
  qkv_ = layer.Saved({t, 3 * d});
  y_ = layer.Saved({t, num_heads_, d / num_heads_});
  const Qkv in = SplitHeads(qkv_, num_heads_);
  const auto project = [&](int64_t begin, int64_t end) {
    kernels::LinearForward(ctx, qkv_.Columns(begin, end), normed_, w.Rows(begin, end));
    const int64_t turned = std::min(end, 2 * d) - begin, head_dim = d / num_heads_;
    const Tensor heads = qkv_.Columns(begin, begin + turned).View({t, turned / head_dim, head_dim});
    kernels::Rope(ctx, heads, layer.positions, rope_theta_, /*inverse=*/false);
  };
  const int64_t first = mixer_->exchanges() ? d : 0;  // queries last, while k and v travel

  kernels::RmsNormForward(ctx, normed_, rstd_, x, parameters_.norm.value);
  project(first, 3 * d);
  ELA_RETURN_IF_ERROR(mixer_->StartForward(layer, in, rows));
  if (first > 0) project(0, first);
  ELA_RETURN_IF_ERROR(mixer_->FinishForward(layer, y_, in, rows));
  kernels::LinearForward(ctx, out, y_.View({t, d}), parameters_.out.value, added);
  return absl::OkStatus();
}

absl::Status AttentionLayer::Backward(const LayerContext& layer, Tensor dx, Tensor dout,
                                      Tensor added, const TokenRows& rows) {
  const kernels::TraceRange range("AttentionLayer::Backward");
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = dx.dim(0), d = dx.dim(1);
  const Tensor dy = layer.Scratch({t, num_heads_, d / num_heads_});
  const Tensor dqkv = layer.Scratch({t, 3 * d});
  const Tensor dnormed = layer.Scratch({t, d});
  const Qkv in = SplitHeads(qkv_, num_heads_), din = SplitHeads(dqkv, num_heads_);

  kernels::LinearBackward(ctx, dy.View({t, d}), Tensor(), dout, y_.View({t, d}),
                          parameters_.out.value);
  ELA_RETURN_IF_ERROR(mixer_->StartBackward(layer, dy, y_, in, rows));
  kernels::LinearBackward(ctx, Tensor(), parameters_.out.grad, dout, y_.View({t, d}),
                          parameters_.out.value);
  ELA_RETURN_IF_ERROR(mixer_->FinishBackward(layer, din, dy, y_, in, rows));
  const Tensor dqk = dqkv.Columns(0, 2 * d).View({t, 2 * num_heads_, d / num_heads_});
  kernels::Rope(ctx, dqk, layer.positions, rope_theta_, /*inverse=*/true);
  kernels::LinearBackward(ctx, dnormed, parameters_.qkv.grad, dqkv, normed_, parameters_.qkv.value);
  kernels::RmsNormBackward(ctx, dx, parameters_.norm.grad, dnormed, x_, parameters_.norm.value,
                           rstd_, added);
  return absl::OkStatus();
}

std::unique_ptr<MixerCache> AttentionLayer::NewCache(const LayerContext& layer,
                                                     int64_t sequences) const {
  return mixer_->NewCache(layer, sequences);
}

absl::Status AttentionLayer::FillCache(const LayerContext& layer, const TokenRows& rows,
                                       MixerCache* cache) const {
  return mixer_->FillCache(layer, SplitHeads(qkv_, num_heads_), rows, cache);
}

void AttentionLayer::Decode(const LayerContext& layer, Tensor out, Tensor x, Tensor added,
                            Tensor positions, MixerCache* cache) const {
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t b = x.dim(0), d = x.dim(1);
  const Tensor rstd = layer.ScratchStatistic({b});
  const Tensor normed = layer.Scratch({b, d});
  const Tensor qkv = layer.Scratch({b, 3 * d});
  const Tensor y = layer.Scratch({b, num_heads_, d / num_heads_});
  const Qkv in = SplitHeads(qkv, num_heads_);
  const Tensor q_and_k = qkv.Columns(0, 2 * d).View({b, 2 * num_heads_, d / num_heads_});

  kernels::RmsNormForward(ctx, normed, rstd, x, parameters_.norm.value);
  kernels::LinearForward(ctx, qkv, normed, parameters_.qkv.value);
  kernels::Rope(ctx, q_and_k, positions, rope_theta_, /*inverse=*/false);
  mixer_->Decode(layer, y, in, positions, cache);
  kernels::LinearForward(ctx, out, y.View({b, d}), parameters_.out.value, added);
}

}  // namespace ela::trainer
