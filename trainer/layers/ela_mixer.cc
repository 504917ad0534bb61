#include "trainer/layers/ela_mixer.h"

#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::SpanEdge;
using kernels::Tensor;

namespace {

/// The same at any length.
struct ElaCache : MixerCache {
  ElaCache(const LayerContext& layer, int64_t sequences, int64_t size)
      : memory(static_cast<size_t>(sequences * size) * kernels::SizeOf(layer.statistic),
               layer.ctx.backend),
        state(memory.data(), layer.statistic, {sequences, size}) {}
  void Reserve(const LayerContext&, int64_t) override {}
  std::unique_ptr<MixerCache> Repeated(const LayerContext& layer,
                                       int64_t sequences) const override {
    auto all = std::make_unique<ElaCache>(layer, sequences, state.dim(1));
    for (int64_t b = 0; b < sequences; ++b) {
      kernels::Copy(layer.ctx, all->state.Rows(b, b + 1), state);
    }
    return all;
  }

  kernels::BackendMemory memory;
  Tensor state;  // [B, S]
};

}  // namespace

ElaMixer::ElaMixer(kernels::ElaConfig config, Communicator* sequence)
    : config_(std::move(config)),
      sequence_(sequence != nullptr && sequence->size() > 1 ? sequence : nullptr) {}

void ElaMixer::TakeExchange(const LayerContext& layer, int64_t sequences) {
  const int64_t rows = (config_.causal ? 1 : 2) * sequences;
  const int64_t size = kernels::ElaStateSize(config_);
  mine_ = layer.ScratchStatistic({rows, size});
  gathered_ = layer.ScratchStatistic({sequence_->size(), rows, size});
}

// Causal passes export one edge, `only`; bidirectional ones all first spans, then all last ones.
Tensor ElaMixer::Edge(SpanEdge edge, SpanEdge only, int64_t sequences) const {
  if (config_.causal) return edge == only ? mine_ : Tensor();
  return edge == SpanEdge::kFirst ? mine_.Rows(0, sequences) : mine_.Rows(sequences, 2 * sequences);
}

absl::Status ElaMixer::StartForward(const LayerContext& layer, const Qkv& in,
                                    const TokenRows& rows) {
  if (sequence_ == nullptr) return absl::OkStatus();
  TakeExchange(layer, rows.sequences());
  for (SpanEdge edge : {SpanEdge::kFirst, SpanEdge::kLast}) {
    const Tensor state = Edge(edge, /*only=*/SpanEdge::kLast, rows.sequences());
    if (state.empty()) continue;
    kernels::ElaLocalState(layer.ctx, state, in.k, in.v, config_, rows.spans(), edge);
  }
  return exchange_.Start(*sequence_, gathered_, mine_);
}

absl::Status ElaMixer::FinishForward(const LayerContext& layer, Tensor y, const Qkv& in,
                                     const TokenRows& rows) {
  lse_ = layer.SavedStatistic({y.dim(0), config_.num_heads});
  before_ = after_ = Tensor();
  if (sequence_ != nullptr) {
    const int64_t size = kernels::ElaStateSize(config_);
    before_ = layer.SavedStatistic({rows.sequences(), size});
    if (!config_.causal) after_ = layer.SavedStatistic({rows.sequences(), size});
    ELA_RETURN_IF_ERROR(exchange_.Wait());
    FoldBefore(layer.ctx, before_, gathered_, config_, rows.folds(), StateKind::kState);
    if (!config_.causal) {
      FoldAfter(layer.ctx, after_, gathered_, config_, rows.folds(), StateKind::kState);
    }
  }
  const int64_t floats =
      kernels::ElaSegmentFloats(layer.ctx, y, in.q, in.k, in.v, config_, rows.spans());
  segments_ = floats > 0 ? layer.SavedStatistic({floats}) : Tensor();
  kernels::ElaForward(layer.ctx, y, lse_, in.q, in.k, in.v, before_, after_, config_, rows.spans(),
                      segments_);
  return absl::OkStatus();
}

absl::Status ElaMixer::StartBackward(const LayerContext& layer, Tensor dy, Tensor y, const Qkv& in,
                                     const TokenRows& rows) {
  if (sequence_ == nullptr) return absl::OkStatus();
  TakeExchange(layer, rows.sequences());
  for (SpanEdge edge : {SpanEdge::kFirst, SpanEdge::kLast}) {
    const Tensor state = Edge(edge, /*only=*/SpanEdge::kFirst, rows.sequences());
    if (state.empty()) continue;
    kernels::ElaLocalGradState(layer.ctx, state, dy, in.q, y, lse_, config_, rows.spans(), edge);
  }
  return exchange_.Start(*sequence_, gathered_, mine_);
}

absl::Status ElaMixer::FinishBackward(const LayerContext& layer, const Qkv& din, Tensor dy,
                                      Tensor y, const Qkv& in, const TokenRows& rows) {
  Tensor grad_before, grad_after;
  if (sequence_ != nullptr) {
    const int64_t size = kernels::ElaStateSize(config_);
    grad_after = layer.ScratchStatistic({rows.sequences(), size});
    if (!config_.causal) grad_before = layer.ScratchStatistic({rows.sequences(), size});
    ELA_RETURN_IF_ERROR(exchange_.Wait());
    FoldAfter(layer.ctx, grad_after, gathered_, config_, rows.folds(), StateKind::kGradState);
    if (!config_.causal) {
      FoldBefore(layer.ctx, grad_before, gathered_, config_, rows.folds(), StateKind::kGradState);
    }
  }
  kernels::ElaBackward(layer.ctx, din.q, din.k, din.v, dy, in.q, in.k, in.v, y, lse_, before_,
                       after_, grad_before, grad_after, config_, rows.spans(), segments_);
  return absl::OkStatus();
}

int64_t ElaMixer::CacheBytes(const LayerContext& layer, int64_t sequences, int64_t) const {
  return sequences * kernels::ElaStateSize(config_) *
         static_cast<int64_t>(kernels::SizeOf(layer.statistic));
}

std::unique_ptr<MixerCache> ElaMixer::NewCache(const LayerContext& layer, int64_t sequences) {
  auto cache = std::make_unique<ElaCache>(layer, sequences, kernels::ElaStateSize(config_));
  kernels::ElaStateIdentity(layer.ctx, cache->state, config_);
  return cache;
}

absl::Status ElaMixer::FillCache(const LayerContext& layer, const Qkv& in, const TokenRows& rows,
                                 MixerCache* cache) {
  const Tensor state = static_cast<ElaCache*>(cache)->state;
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const Tensor local = layer.ScratchStatistic({state.dim(0), state.dim(1)});
  kernels::ElaLocalState(layer.ctx, local, in.k, in.v, config_, rows.spans(), SpanEdge::kLast);
  if (before_.empty()) {
    kernels::ElaStateIdentity(layer.ctx, state, config_);
  } else {
    kernels::Copy(layer.ctx, state, before_);
  }
  kernels::ElaFold(layer.ctx, state, local, config_, /*take=*/{}, /*reverse=*/false);
  return absl::OkStatus();
}

void ElaMixer::Decode(const LayerContext& layer, Tensor y, const Qkv& in, Tensor positions,
                      MixerCache* cache) {
  kernels::ElaDecode(layer.ctx, y, static_cast<ElaCache*>(cache)->state, in.q, in.k, in.v, config_);
}

}  // namespace ela::trainer
