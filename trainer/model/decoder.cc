#include "trainer/model/decoder.h"

#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/model/build_layers.h"

namespace ela::trainer {

using kernels::ArenaScope;
using kernels::Tensor;

namespace {

/// To layer i's of `counts` [N]: what ran since the last call.
void CountSlowPath(const kernels::Context& ctx, const Tensor& counts, size_t i) {
  const auto row = static_cast<int64_t>(i);
  kernels::ElaTakeSlowPathChunks(ctx, counts.Rows(row, row + 1));
}

}  // namespace

RoutingStatistics::RoutingStatistics(int64_t num_layers, int64_t num_experts)
    : layers(num_layers),
      experts(num_experts),
      counts(static_cast<size_t>(num_layers * num_experts)),
      prob_sums(static_cast<size_t>(num_layers * num_experts)) {}

void RoutingStatistics::Add(const RoutingStatistics& other) {
  for (size_t i = 0; i < counts.size(); ++i) counts[i] += other.counts[i];
  for (size_t i = 0; i < prob_sums.size(); ++i) prob_sums[i] += other.prob_sums[i];
}

Decoder::Decoder(const v1::ModelSpec& model, const ParameterStore* store, const Mesh* mesh,
                 const DecoderOptions& options)
    : model_(model), options_(options), embed_(ParameterOf(*store, "embed.weight")) {
  if (model.final_norm()) final_norm_ = ParameterOf(*store, "final_norm.weight");
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    layers_.push_back(BuildLayer(model, *store, mesh, options.causal, i));
  }
  inputs_.resize(layers_.size() + 1);
  slow_path_.resize(layers_.size());
  marks_.resize(layers_.size());
}

std::vector<int64_t> Decoder::TakeSlowPathChunks() {
  std::vector<int64_t> taken(slow_path_.size());
  std::swap(taken, slow_path_);
  return taken;
}

void Decoder::Forget(const LayerContext& layer) {
  if (holds_) layer.saved->Release(mark_);
  holds_ = false;
}

absl::Status Decoder::BeforePart(int64_t part) const {
  return options_.before_part ? options_.before_part(part) : absl::OkStatus();
}

absl::Status Decoder::RunLayers(const LayerContext& context, const TokenRows& rows,
                                RoutingStatistics* routing) {
  LayerContext layer = context;
  layer.positions = positions_;
  const kernels::Context& ctx = layer.ctx;
  const ArenaScope scope(ctx.scratch);
  if (routing != nullptr && layers_.front()->moe().dense()) {
    for (int64_t& count : routing->counts) count += rows.count();
    for (double& sum : routing->prob_sums) sum += static_cast<double>(rows.count());
    routing = nullptr;
  }
  Tensor prob_sums, counts;  // [N E], of all layers: one transfer
  if (routing != nullptr) {
    const int64_t all = routing->layers * routing->experts;
    prob_sums = kernels::Uploaded(ctx, Tensor::Of(routing->prob_sums.data(), {all}));
    counts = kernels::Uploaded(ctx, Tensor::Of(routing->counts.data(), {all}));
  }
  const Tensor slow_path =
      kernels::Uploaded(ctx, Tensor::Of(slow_path_.data(), {model_.num_layers()}));
  for (size_t i = 0; i < layers_.size(); ++i) {
    marks_[i] = layer.saved->Mark();
    ELA_RETURN_IF_ERROR(BeforePart(static_cast<int64_t>(i) + 1));
    ELA_RETURN_IF_ERROR(layers_[i]->Forward(layer, inputs_[i + 1], inputs_[i], rows));
    CountSlowPath(ctx, slow_path, i);
    if (routing != nullptr) {
      const int64_t e = routing->experts, at = static_cast<int64_t>(i) * e;
      layers_[i]->moe().AddRoutingStatistics(layer, prob_sums.Rows(at, at + e),
                                             counts.Rows(at, at + e));
    }
    if (Recomputes(i)) layer.saved->Release(marks_[i]);
  }
  if (slow_path.data() != slow_path_.data()) kernels::CopyOut(ctx, slow_path_.data(), slow_path);
  if (routing != nullptr && prob_sums.data() != routing->prob_sums.data()) {
    kernels::CopyOut(ctx, routing->prob_sums.data(), prob_sums);
    kernels::CopyOut(ctx, routing->counts.data(), counts);
  }
  return absl::OkStatus();
}

absl::Status Decoder::Forward(const LayerContext& layer, const TokenRows& rows,
                              RoutingStatistics* routing) {
  const kernels::TraceRange range("Decoder::Forward");
  Forget(layer);
  mark_ = layer.saved->Mark();
  holds_ = true;
  const int64_t t = rows.count(), d = model_.hidden_size();
  for (Tensor& x : inputs_) x = layer.Saved({t, d});
  kernels::Context keeping = layer.ctx;
  keeping.scratch = layer.saved;
  positions_ = kernels::Uploaded(keeping, rows.positions());
  features_ = inputs_.back();
  if (model_.final_norm()) {
    features_ = layer.Saved({t, d});
    final_rstd_ = layer.SavedStatistic({t});
  }

  ELA_RETURN_IF_ERROR(BeforePart(0));
  {
    const ArenaScope scope(layer.ctx.scratch);
    kernels::EmbeddingForward(layer.ctx, inputs_[0], kernels::Uploaded(layer.ctx, rows.ids()),
                              embed_.value);
  }
  ELA_RETURN_IF_ERROR(RunLayers(layer, rows, routing));
  if (model_.final_norm()) {
    kernels::RmsNormForward(layer.ctx, features_, final_rstd_, inputs_.back(), final_norm_.value);
  }
  return absl::OkStatus();
}

absl::Status Decoder::Backward(const LayerContext& context, const TokenRows& rows, double scale,
                               Tensor dprobs, double* loss_sum, const AtPart& after_layer) {
  const kernels::TraceRange range("Decoder::Backward");
  LayerContext layer = context;
  layer.positions = positions_;
  const kernels::Context& ctx = layer.ctx;
  const ArenaScope scope(ctx.scratch);
  const int64_t t = rows.count(), d = model_.hidden_size();
  Tensor dx = layer.Scratch({t, d}), dout = layer.Scratch({t, d});

  const Tensor loss = kernels::Uploaded(ctx, Tensor::Of(loss_sum, {1}));
  const Tensor slow_path =
      kernels::Uploaded(ctx, Tensor::Of(slow_path_.data(), {model_.num_layers()}));
  kernels::LossForwardBackward(ctx, loss, dx, embed_.grad, features_, embed_.value,
                               kernels::Uploaded(ctx, rows.targets()), scale);
  if (model_.final_norm()) {
    std::swap(dx, dout);
    kernels::RmsNormBackward(ctx, dx, final_norm_.grad, dout, inputs_.back(), final_norm_.value,
                             final_rstd_);
  }
  for (size_t i = layers_.size(); i-- > 0;) {
    std::swap(dx, dout);
    const Tensor dprobs_i = dprobs.empty()
                                ? dprobs
                                : dprobs.Rows(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1)
                                      .View({dprobs.dim(1)});
    if (Recomputes(i)) {
      ELA_RETURN_IF_ERROR(layers_[i]->Forward(layer, inputs_[i + 1], inputs_[i], rows));
    }
    ELA_RETURN_IF_ERROR(layers_[i]->Backward(layer, dx, dout, dprobs_i, rows));
    CountSlowPath(ctx, slow_path, i);
    layer.saved->Release(marks_[i]);
    if (after_layer) ELA_RETURN_IF_ERROR(after_layer(static_cast<int64_t>(i) + 1));
  }
  kernels::EmbeddingBackward(ctx, embed_.grad, dx, kernels::Uploaded(ctx, rows.ids()));
  if (loss.data() != loss_sum) kernels::CopyOut(ctx, loss_sum, loss);
  if (slow_path.data() != slow_path_.data()) kernels::CopyOut(ctx, slow_path_.data(), slow_path);
  Forget(layer);
  return absl::OkStatus();
}

void Decoder::Loss(const LayerContext& layer, const TokenRows& rows, double* loss_sum) const {
  const ArenaScope scope(layer.ctx.scratch);
  const Tensor loss = kernels::Uploaded(layer.ctx, Tensor::Of(loss_sum, {1}));
  kernels::LossForwardBackward(layer.ctx, loss, Tensor(), Tensor(), features_, embed_.value,
                               kernels::Uploaded(layer.ctx, rows.targets()), 0);
  if (loss.data() != loss_sum) kernels::CopyOut(layer.ctx, loss_sum, loss);
}

void Decoder::Logprobs(const LayerContext& layer, const TokenRows& rows, Tensor logprob) const {
  const ArenaScope scope(layer.ctx.scratch);
  kernels::TokenLogprobs(layer.ctx, logprob, features_, embed_.value,
                         kernels::Uploaded(layer.ctx, rows.targets()));
}

std::vector<LayerCache> Decoder::NewCache(const LayerContext& layer, int64_t sequences) const {
  std::vector<LayerCache> cache;
  for (const auto& l : layers_) cache.push_back(l->NewCache(layer, sequences));
  return cache;
}

absl::Status Decoder::FillCache(const LayerContext& layer, const TokenRows& rows, Tensor logits,
                                std::vector<LayerCache>* cache) const {
  ELA_CHECK(holds_ && options_.recompute_layers == 0);
  const ArenaScope scope(layer.ctx.scratch);
  for (size_t i = 0; i < layers_.size(); ++i) {
    ELA_RETURN_IF_ERROR(layers_[i]->FillCache(layer, rows, &(*cache)[i]));
  }
  if (rows.count() == 0) return absl::OkStatus();  // a shard without rows is never the last
  const int64_t b = rows.sequences(), length = rows.count() / b;
  const Tensor last = layer.Scratch({b, model_.hidden_size()});
  for (int64_t i = 0; i < b; ++i) {
    const int64_t row = (i + 1) * length - 1;
    kernels::Copy(layer.ctx, last.Rows(i, i + 1), features_.Rows(row, row + 1));
  }
  kernels::LinearForward(layer.ctx, logits, last, embed_.value);
  return absl::OkStatus();
}

void Decoder::Decode(const LayerContext& layer, Tensor logits, Tensor ids, Tensor positions,
                     std::vector<LayerCache>* cache) {
  const kernels::TraceRange range("Decoder::Decode");
  const kernels::Context& ctx = layer.ctx;
  const ArenaScope scope(ctx.scratch);
  const int64_t b = ids.dim(0), d = model_.hidden_size();
  Tensor x = layer.Scratch({b, d}), next = layer.Scratch({b, d});
  const Tensor rstd = layer.ScratchStatistic({b});

  kernels::EmbeddingForward(ctx, x, ids, embed_.value);
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->Decode(layer, next, x, positions, &(*cache)[i]);
    std::swap(x, next);
  }
  if (model_.final_norm()) {
    kernels::RmsNormForward(ctx, next, rstd, x, final_norm_.value);
    std::swap(x, next);
  }
  kernels::LinearForward(ctx, logits, x, embed_.value);
}

}  // namespace ela::trainer
