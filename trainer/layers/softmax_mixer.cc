#include "trainer/layers/softmax_mixer.h"

#include <limits>
#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::SizeOf;
using kernels::Tensor;

namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

Tensor Indices(const std::vector<int32_t>& values) {
  return Tensor::Of(values.data(), {static_cast<int64_t>(values.size())});
}

}  // namespace

SoftmaxMixer::SoftmaxMixer(const kernels::SoftmaxAttentionConfig& config, Communicator* sequence)
    : config_(config),
      sequence_(sequence != nullptr && sequence->size() > 1 ? sequence : nullptr) {}

RingBytes SoftmaxMixer::BytesOf(const LayerContext& layer, bool backward) const {
  const size_t heads = static_cast<size_t>(config_.num_heads);
  const size_t width = heads * static_cast<size_t>(config_.head_dim);
  const size_t element = SizeOf(layer.element), statistic = SizeOf(layer.statistic);
  if (!backward) {
    return {.keys = 2 * width * element,
            .queries = width * element,
            .keys_reply = 0,
            .queries_reply = (width + heads) * statistic};
  }
  return {.keys = 2 * width * element,
          .queries = 2 * width * element + 2 * heads * statistic,
          .keys_reply = 2 * width * statistic,
          .queries_reply = width * statistic};
}

SoftmaxMixer::Keys SoftmaxMixer::KeysAt(const LayerContext& layer, char* memory,
                                        int64_t rows) const {
  const int64_t h = config_.num_heads, d = config_.head_dim;
  const Tensor both(memory, layer.element, {2 * rows, h, d});
  return {both.Rows(0, rows), both.Rows(rows, 2 * rows), {}};
}

SoftmaxMixer::Queries SoftmaxMixer::QueriesAt(const LayerContext& layer, char* memory, int64_t rows,
                                              bool backward) const {
  const int64_t h = config_.num_heads, d = config_.head_dim;
  const Tensor q(memory, layer.element, {(backward ? 2 : 1) * rows, h, d});
  Queries queries{q.Rows(0, rows), {}, {}, {}, {}};
  if (!backward) return queries;
  queries.dy = q.Rows(rows, 2 * rows);
  char* statistics = memory + static_cast<size_t>(q.numel()) * SizeOf(layer.element);
  const Tensor both(statistics, layer.statistic, {2 * rows, h});
  queries.lse = both.Rows(0, rows);
  queries.delta = both.Rows(rows, 2 * rows);
  return queries;
}

void SoftmaxMixer::PackKeys(const LayerContext& layer, const Qkv& in) {
  if (ring_->steps() == 0) return;
  const size_t bytes = static_cast<size_t>(in.k.dim(0)) * BytesOf(layer, false).keys;
  sent_keys_ = static_cast<char*>(layer.ctx.scratch->Take(bytes));
  const Keys packed = KeysAt(layer, sent_keys_, in.k.dim(0));
  kernels::Copy(layer.ctx, packed.k, in.k);
  kernels::Copy(layer.ctx, packed.v, in.v);
}

void SoftmaxMixer::PackQueries(const LayerContext& layer, const Queries& queries, bool backward) {
  if (!ring_->sends_queries()) return;
  const int64_t rows = queries.q.dim(0);
  const size_t bytes = static_cast<size_t>(rows) * BytesOf(layer, backward).queries;
  sent_queries_ = static_cast<char*>(layer.ctx.scratch->Take(bytes));
  const Queries packed = QueriesAt(layer, sent_queries_, rows, backward);
  kernels::Copy(layer.ctx, packed.q, queries.q);
  if (!backward) return;
  kernels::Copy(layer.ctx, packed.dy, queries.dy);
  kernels::Copy(layer.ctx, packed.lse, queries.lse);
  kernels::Copy(layer.ctx, packed.delta, queries.delta);
}

/// Of query rows [begin, end) and all keys, where the back end reads them.
SoftmaxMixer::PlaceTensors SoftmaxMixer::PlacesOf(const LayerContext& layer, const Queries& queries,
                                                  const Keys& keys, int64_t begin, int64_t end) {
  const auto uploaded = [&](const Tensor& x) { return kernels::Uploaded(layer.ctx, x); };
  return {uploaded(Indices(queries.places.documents).Rows(begin, end)),
          uploaded(Indices(keys.places.documents)),
          uploaded(Indices(queries.places.positions).Rows(begin, end)),
          uploaded(Indices(keys.places.positions))};
}

void SoftmaxMixer::Fold(const LayerContext& layer, Tensor y, Tensor lse, const Queries& queries,
                        const Keys& keys, int64_t begin, int64_t end) const {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const PlaceTensors places = PlacesOf(layer, queries, keys, begin, end);
  kernels::SoftmaxAttentionForward(layer.ctx, y, lse, queries.q.Rows(begin, end), keys.k, keys.v,
                                   places.q_document, places.k_document, places.q_position,
                                   places.k_position, config_);
}

void SoftmaxMixer::AddGradients(const LayerContext& layer, Tensor dq, Tensor dk, Tensor dv,
                                const Queries& queries, const Keys& keys, int64_t begin,
                                int64_t end) const {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const PlaceTensors places = PlacesOf(layer, queries, keys, begin, end);
  kernels::SoftmaxAttentionBackward(
      layer.ctx, dq, dk, dv, queries.dy.Rows(begin, end), queries.q.Rows(begin, end), keys.k,
      keys.v, queries.lse.Rows(begin, end), queries.delta.Rows(begin, end), places.q_document,
      places.k_document, places.q_position, places.k_position, config_);
}

absl::Status SoftmaxMixer::StartForward(const LayerContext& layer, const Qkv& in,
                                        const TokenRows& rows) {
  ring_.emplace(layer, sequence_, rows, config_.causal, BytesOf(layer, /*backward=*/false));
  PackKeys(layer, in);
  return absl::OkStatus();
}

absl::Status SoftmaxMixer::FinishForward(const LayerContext& layer, Tensor y, const Qkv& in,
                                         const TokenRows& rows) {
  const int64_t t = y.dim(0);
  const RowPlaces places = rows.PlacesOf(rows.folds().shard);
  const Queries queries{in.q, {}, {}, {}, places};
  const Keys keys{in.k, in.v, places};
  lse_ = layer.SavedStatistic({t, config_.num_heads});
  PackQueries(layer, queries, /*backward=*/false);
  // A running result is kept in float and rounded once.
  const bool direct = ring_->steps() == 0 || layer.element == layer.statistic;
  const Tensor sum = direct ? y : layer.ScratchStatistic({t, y.dim(1), y.dim(2)});
  kernels::Fill(layer.ctx, sum, 0);
  kernels::Fill(layer.ctx, lse_, kNothing);

  if (ring_->steps() > 0) ELA_RETURN_IF_ERROR(ring_->Start(1, sent_keys_, sent_queries_));
  Fold(layer, sum, lse_, queries, keys, 0, t);
  for (int step = 1; step <= ring_->steps(); ++step) {
    ELA_RETURN_IF_ERROR(ForwardStep(layer, step, sum, queries, keys, rows));
    if (step > 1) ELA_RETURN_IF_ERROR(MergeReply(layer, step - 1, sum));
  }
  if (ring_->steps() > 0) ELA_RETURN_IF_ERROR(MergeReply(layer, ring_->steps(), sum));
  if (!direct) kernels::Copy(layer.ctx, y, sum);
  return absl::OkStatus();
}

absl::Status SoftmaxMixer::ForwardStep(const LayerContext& layer, int t, Tensor y,
                                       const Queries& own_queries, const Keys& own_keys,
                                       const TokenRows& rows) {
  const RingStep step = ring_->step(t);
  ELA_ASSIGN_OR_RETURN(char* const received, ring_->Receive(t));
  if (t < ring_->steps()) ELA_RETURN_IF_ERROR(ring_->Start(t + 1, sent_keys_, sent_queries_));
  const int64_t there = rows.ShardRows(step.from);
  if (step.gets_keys) {
    Keys keys = KeysAt(layer, received, there);
    keys.places = rows.PlacesOf(step.from);
    const int64_t end = step.OwnersEnd(y.dim(0));
    Fold(layer, y.Rows(0, end), lse_.Rows(0, end), own_queries, keys, 0, end);
  } else {
    Queries queries = QueriesAt(layer, received, there, /*backward=*/false);
    queries.places = rows.PlacesOf(step.from);
    const int64_t begin = step.HelpersBegin(there), h = config_.num_heads, d = config_.head_dim;
    const Tensor part(ring_->Outgoing(t), layer.statistic, {there - begin, h, d});
    char* after = ring_->Outgoing(t) + static_cast<size_t>(part.numel()) * SizeOf(layer.statistic);
    const Tensor part_lse(after, layer.statistic, {there - begin, h});
    kernels::Fill(layer.ctx, part, 0);
    kernels::Fill(layer.ctx, part_lse, kNothing);
    Fold(layer, part, part_lse, queries, own_keys, begin, there);
  }
  return ring_->StartReply(t);
}

absl::Status SoftmaxMixer::MergeReply(const LayerContext& layer, int t, Tensor y) {
  const RingStep step = ring_->step(t);
  ELA_ASSIGN_OR_RETURN(char* const reply, ring_->ReceiveReply(t));
  if (step.sends_keys) return absl::OkStatus();
  const int64_t begin = step.HelpersBegin(y.dim(0)), end = y.dim(0);
  const Tensor part(reply, layer.statistic, {end - begin, y.dim(1), y.dim(2)});
  char* after = reply + static_cast<size_t>(part.numel()) * SizeOf(layer.statistic);
  const Tensor part_lse(after, layer.statistic, {end - begin, y.dim(1)});
  kernels::SoftmaxAttentionMerge(layer.ctx, y.Rows(begin, end), lse_.Rows(begin, end), part,
                                 part_lse);
  return absl::OkStatus();
}

absl::Status SoftmaxMixer::StartBackward(const LayerContext& layer, Tensor dy, Tensor y,
                                         const Qkv& in, const TokenRows& rows) {
  delta_ = layer.ScratchStatistic({y.dim(0), config_.num_heads});
  kernels::RowDots(layer.ctx, delta_, dy, y);
  ring_.emplace(layer, sequence_, rows, config_.causal, BytesOf(layer, /*backward=*/true));
  PackKeys(layer, in);
  PackQueries(layer, {in.q, dy, lse_, delta_, {}}, /*backward=*/true);
  return ring_->steps() > 0 ? ring_->Start(1, sent_keys_, sent_queries_) : absl::OkStatus();
}

absl::Status SoftmaxMixer::FinishBackward(const LayerContext& layer, const Qkv& din, Tensor dy,
                                          Tensor y, const Qkv& in, const TokenRows& rows) {
  const int64_t t = y.dim(0), h = y.dim(1), d = y.dim(2);
  const RowPlaces places = rows.PlacesOf(rows.folds().shard);
  const Queries queries{in.q, dy, lse_, delta_, places};
  const Keys keys{in.k, in.v, places};
  const bool direct = ring_->steps() == 0 || layer.element == layer.statistic;
  const auto float_like = [&] { return layer.ScratchStatistic({t, h, d}); };
  const Qkv sums = direct ? din : Qkv{float_like(), float_like(), float_like()};
  for (const Tensor& sum : {sums.q, sums.k, sums.v}) kernels::Fill(layer.ctx, sum, 0);

  AddGradients(layer, sums.q, sums.k, sums.v, queries, keys, 0, t);
  for (int step = 1; step <= ring_->steps(); ++step) {
    ELA_RETURN_IF_ERROR(BackwardStep(layer, step, sums, queries, keys, rows));
    if (step > 1) ELA_RETURN_IF_ERROR(AddReply(layer, step - 1, sums));
  }
  if (ring_->steps() > 0) ELA_RETURN_IF_ERROR(AddReply(layer, ring_->steps(), sums));
  if (direct) return absl::OkStatus();
  kernels::Copy(layer.ctx, din.q, sums.q);
  kernels::Copy(layer.ctx, din.k, sums.k);
  kernels::Copy(layer.ctx, din.v, sums.v);
  return absl::OkStatus();
}

absl::Status SoftmaxMixer::BackwardStep(const LayerContext& layer, int t, const Qkv& sums,
                                        const Queries& own_queries, const Keys& own_keys,
                                        const TokenRows& rows) {
  const RingStep step = ring_->step(t);
  ELA_ASSIGN_OR_RETURN(char* const received, ring_->Receive(t));
  if (t < ring_->steps()) ELA_RETURN_IF_ERROR(ring_->Start(t + 1, sent_keys_, sent_queries_));
  const int64_t there = rows.ShardRows(step.from), h = config_.num_heads, d = config_.head_dim;
  if (step.gets_keys) {
    Keys keys = KeysAt(layer, received, there);
    keys.places = rows.PlacesOf(step.from);
    const int64_t end = step.OwnersEnd(sums.q.dim(0));
    const Tensor parts(ring_->Outgoing(t), layer.statistic, {2 * there, h, d});
    kernels::Fill(layer.ctx, parts, 0);
    AddGradients(layer, sums.q.Rows(0, end), parts.Rows(0, there), parts.Rows(there, 2 * there),
                 own_queries, keys, 0, end);
  } else {
    Queries queries = QueriesAt(layer, received, there, /*backward=*/true);
    queries.places = rows.PlacesOf(step.from);
    const int64_t begin = step.HelpersBegin(there);
    const Tensor part(ring_->Outgoing(t), layer.statistic, {there - begin, h, d});
    kernels::Fill(layer.ctx, part, 0);
    AddGradients(layer, part, sums.k, sums.v, queries, own_keys, begin, there);
  }
  return ring_->StartReply(t);
}

absl::Status SoftmaxMixer::AddReply(const LayerContext& layer, int t, const Qkv& sums) {
  const RingStep step = ring_->step(t);
  ELA_ASSIGN_OR_RETURN(char* const reply, ring_->ReceiveReply(t));
  const int64_t rows = sums.q.dim(0), h = config_.num_heads, d = config_.head_dim;
  if (step.sends_keys) {
    const Tensor parts(reply, layer.statistic, {2 * rows, h, d});
    kernels::Add(layer.ctx, sums.k, sums.k, parts.Rows(0, rows));
    kernels::Add(layer.ctx, sums.v, sums.v, parts.Rows(rows, 2 * rows));
  } else {
    const int64_t begin = step.HelpersBegin(rows);
    const Tensor part(reply, layer.statistic, {rows - begin, h, d});
    kernels::Add(layer.ctx, sums.q.Rows(begin, rows), sums.q.Rows(begin, rows), part);
  }
  return absl::OkStatus();
}

}  // namespace ela::trainer
