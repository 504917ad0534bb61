#include "trainer/layers/softmax_mixer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::ArenaScope;
using kernels::SizeOf;
using kernels::Tensor;

namespace {

/// Grows by one token of each sequence at a time.
struct KeyValueCache : MixerCache {
  std::vector<std::vector<char>> k, v;  // [B] rows [H D] of the tokens so far
  int64_t bytes() const override {
    size_t n = 0;
    for (const auto& x : k) n += 2 * x.size();
    return static_cast<int64_t>(n);
  }
};

void AppendRow(const Tensor& x, int64_t row, std::vector<char>* rows) {
  const Tensor one = x.Rows(row, row + 1);
  const char* data = static_cast<const char*>(one.data());
  rows->insert(rows->end(), data, data + static_cast<size_t>(one.numel()) * SizeOf(x.dtype()));
}

Tensor Indices(const std::vector<int32_t>& values) {
  return Tensor::Of(values.data(), {static_cast<int64_t>(values.size())});
}

int64_t MaxShardRows(const TokenRows& rows) {
  int64_t most = 0;
  for (int j = 0; j < rows.folds().shards; ++j) most = std::max(most, rows.ShardRows(j));
  return most;
}

}  // namespace

SoftmaxMixer::SoftmaxMixer(const kernels::SoftmaxAttentionConfig& config, Communicator* sequence)
    : config_(config),
      sequence_(sequence != nullptr && sequence->size() > 1 ? sequence : nullptr) {}

int SoftmaxMixer::VisibleShards(const TokenRows& rows) const {
  return config_.causal ? rows.folds().shard + 1 : rows.folds().shards;
}

absl::Status SoftmaxMixer::StartGather(const LayerContext& layer, const Qkv& in,
                                       const TokenRows& rows) {
  if (sequence_ == nullptr) return absl::OkStatus();
  const int64_t most = MaxShardRows(rows), t = rows.count(), h = in.k.dim(1), d = in.k.dim(2);
  mine_ = layer.Scratch({2 * most, h, d});
  gathered_ = layer.Scratch({sequence_->size() * 2 * most, h, d});
  kernels::Copy(layer.ctx, mine_.Rows(0, t), in.k);
  kernels::Copy(layer.ctx, mine_.Rows(most, most + t), in.v);
  const size_t bytes = static_cast<size_t>(mine_.numel()) * SizeOf(mine_.dtype());
  ELA_ASSIGN_OR_RETURN(pending_, sequence_->AllGatherStart(gathered_.data(), mine_.data(), bytes));
  return absl::OkStatus();
}

absl::Status SoftmaxMixer::WaitGather() {
  const std::unique_ptr<Pending> pending = std::move(pending_);
  return pending == nullptr ? absl::OkStatus() : pending->Wait();
}

SoftmaxMixer::Block SoftmaxMixer::BlockOf(int shard, const Qkv& in, const TokenRows& rows) const {
  if (sequence_ == nullptr) return {in.k, in.v, rows.PlacesOf(shard)};
  const int64_t most = mine_.dim(0) / 2, first = shard * 2 * most, t = rows.ShardRows(shard);
  return {gathered_.Rows(first, first + t), gathered_.Rows(first + most, first + most + t),
          rows.PlacesOf(shard)};
}

absl::Status SoftmaxMixer::StartForward(const LayerContext& layer, const Qkv& in,
                                        const TokenRows& rows) {
  return StartGather(layer, in, rows);
}

absl::Status SoftmaxMixer::FinishForward(const LayerContext& layer, Tensor y, const Qkv& in,
                                         const TokenRows& rows) {
  lse_ = layer.SavedStatistic({y.dim(0), config_.num_heads});
  kernels::Fill(layer.ctx, y, 0);
  kernels::Fill(layer.ctx, lse_, -std::numeric_limits<double>::infinity());
  ELA_RETURN_IF_ERROR(WaitGather());
  const RowPlaces own = rows.PlacesOf(rows.folds().shard);
  for (int j = 0; j < VisibleShards(rows); ++j) {
    const Block block = BlockOf(j, in, rows);
    kernels::SoftmaxAttentionForward(layer.ctx, y, lse_, in.q, block.k, block.v,
                                     Indices(own.documents), Indices(block.places.documents),
                                     Indices(own.positions), Indices(block.places.positions),
                                     config_);
  }
  return absl::OkStatus();
}

absl::Status SoftmaxMixer::StartBackward(const LayerContext& layer, Tensor dy, Tensor y,
                                         const Qkv& in, const TokenRows& rows) {
  return StartGather(layer, in, rows);
}

absl::Status SoftmaxMixer::FinishBackward(const LayerContext& layer, const Qkv& din, Tensor dy,
                                          Tensor y, const Qkv& in, const TokenRows& rows) {
  const kernels::Context& ctx = layer.ctx;
  const Tensor delta = layer.ScratchStatistic({y.dim(0), config_.num_heads});
  int64_t total = 0;
  for (int j = 0; j < rows.folds().shards; ++j) total += 2 * rows.ShardRows(j);
  const Tensor parts = layer.Scratch({total, in.k.dim(1), in.k.dim(2)});

  kernels::RowDots(ctx, delta, dy, y);
  kernels::Fill(ctx, din.q, 0);
  kernels::Fill(ctx, parts, 0);
  ELA_RETURN_IF_ERROR(WaitGather());
  const RowPlaces own = rows.PlacesOf(rows.folds().shard);
  int64_t at = 0;
  for (int j = 0; j < VisibleShards(rows); ++j) {
    const Block block = BlockOf(j, in, rows);
    const int64_t t = block.k.dim(0);
    kernels::SoftmaxAttentionBackward(
        ctx, din.q, parts.Rows(at, at + t), parts.Rows(at + t, at + 2 * t), dy, in.q, block.k,
        block.v, lse_, delta, Indices(own.documents), Indices(block.places.documents),
        Indices(own.positions), Indices(block.places.positions), config_);
    at += 2 * t;
  }
  return ReturnGradients(layer, din, parts, rows);
}

// Every rank sends its part of [dk, dv] to each shard's owner; the owner adds them in rank order.
absl::Status SoftmaxMixer::ReturnGradients(const LayerContext& layer, const Qkv& din, Tensor parts,
                                           const TokenRows& rows) {
  const int shards = rows.folds().shards;
  const int64_t t = rows.count();
  Tensor received = parts;
  if (sequence_ != nullptr) {
    received = layer.Scratch({shards * 2 * t, parts.dim(1), parts.dim(2)});
    const size_t row_bytes = static_cast<size_t>(parts.row_numel()) * SizeOf(parts.dtype());
    std::vector<size_t> send, recv;
    for (int j = 0; j < shards; ++j) {
      send.push_back(2 * static_cast<size_t>(rows.ShardRows(j)) * row_bytes);
      recv.push_back(2 * static_cast<size_t>(t) * row_bytes);
    }
    ELA_RETURN_IF_ERROR(sequence_->AllToAllV(received.data(), recv, parts.data(), send));
  }
  kernels::Copy(layer.ctx, din.k, received.Rows(0, t));
  kernels::Copy(layer.ctx, din.v, received.Rows(t, 2 * t));
  for (int j = 1; j < shards; ++j) {
    const int64_t at = j * 2 * t;
    kernels::Add(layer.ctx, din.k, din.k, received.Rows(at, at + t));
    kernels::Add(layer.ctx, din.v, din.v, received.Rows(at + t, at + 2 * t));
  }
  return absl::OkStatus();
}

std::unique_ptr<MixerCache> SoftmaxMixer::NewCache(const LayerContext& layer, int64_t sequences) {
  auto cache = std::make_unique<KeyValueCache>();
  cache->k.resize(static_cast<size_t>(sequences));
  cache->v.resize(static_cast<size_t>(sequences));
  return cache;
}

absl::Status SoftmaxMixer::FillCache(const LayerContext& layer, const Qkv& in,
                                     const TokenRows& rows, MixerCache* cache) {
  if (sequence_ != nullptr) {
    return absl::UnimplementedError("a softmax layer's cache is filled on one rank only");
  }
  auto* kv = static_cast<KeyValueCache*>(cache);
  const int64_t length = rows.count() / rows.sequences();
  for (int64_t row = 0; row < rows.count(); ++row) {
    const size_t b = static_cast<size_t>(row / length);
    AppendRow(in.k, row, &kv->k[b]);
    AppendRow(in.v, row, &kv->v[b]);
  }
  return absl::OkStatus();
}

void SoftmaxMixer::Decode(const LayerContext& layer, Tensor y, const Qkv& in, MixerCache* cache) {
  auto* kv = static_cast<KeyValueCache*>(cache);
  const kernels::Context& ctx = layer.ctx;
  const ArenaScope scope(ctx.scratch);
  const int64_t h = in.k.dim(1), d = in.k.dim(2);
  const size_t row_bytes = static_cast<size_t>(h * d) * SizeOf(in.k.dtype());
  const Tensor lse = layer.ScratchStatistic({in.q.dim(0), config_.num_heads});
  kernels::Fill(ctx, y, 0);
  kernels::Fill(ctx, lse, -std::numeric_limits<double>::infinity());
  for (int64_t b = 0; b < in.q.dim(0); ++b) {
    std::vector<char>&k = kv->k[static_cast<size_t>(b)], &v = kv->v[static_cast<size_t>(b)];
    AppendRow(in.k, b, &k);
    AppendRow(in.v, b, &v);
    const int64_t seen = static_cast<int64_t>(k.size() / row_bytes);
    const std::vector<int32_t> zeros(static_cast<size_t>(seen));  // one document, all visible
    kernels::SoftmaxAttentionForward(ctx, y.Rows(b, b + 1), lse.Rows(b, b + 1), in.q.Rows(b, b + 1),
                                     Tensor(k.data(), in.k.dtype(), {seen, h, d}),
                                     Tensor(v.data(), in.v.dtype(), {seen, h, d}),
                                     Indices(zeros).Rows(0, 1), Indices(zeros),
                                     Indices(zeros).Rows(0, 1), Indices(zeros), config_);
  }
}

}  // namespace ela::trainer
