#include "trainer/layers/ring_exchange.h"

#include <algorithm>
#include <utility>

#include "proto/status_macros.h"

namespace ela::trainer {

RingExchange::RingExchange(const LayerContext& layer, Communicator* group, const TokenRows& rows,
                           bool causal, const RingBytes& bytes)
    : group_(group),
      rows_(&rows),
      causal_(causal),
      bytes_(bytes),
      shards_(group == nullptr ? 1 : group->size()),
      rank_(group == nullptr ? 0 : group->rank()),
      steps_(RingSteps(shards_, causal)) {
  int64_t most = 0;
  for (int j = 0; j < shards_; ++j) most = std::max(most, rows.ShardRows(j));
  const size_t message = static_cast<size_t>(most) * std::max(bytes.keys, bytes.queries);
  const size_t reply = static_cast<size_t>(most) * std::max(bytes.keys_reply, bytes.queries_reply);
  for (int t = 1; t <= std::min(steps_, 2); ++t) {
    Buffers& buffers = buffers_[static_cast<size_t>(t % 2)];
    buffers.received = static_cast<char*>(layer.ctx.scratch->Take(message));
    buffers.outgoing = static_cast<char*>(layer.ctx.scratch->Take(reply));
    buffers.reply = static_cast<char*>(layer.ctx.scratch->Take(reply));
  }
}

absl::Status RingExchange::Start(int t, const void* keys, const void* queries) {
  Buffers& buffers = buffers_[static_cast<size_t>(t % 2)];
  const RingStep s = step(t);
  const size_t recv =
      static_cast<size_t>(rows_->ShardRows(s.from)) * (s.gets_keys ? bytes_.keys : bytes_.queries);
  const size_t send =
      static_cast<size_t>(rows_->ShardRows(rank_)) * (s.sends_keys ? bytes_.keys : bytes_.queries);
  ELA_ASSIGN_OR_RETURN(buffers.exchange,
                       group_->SendRecvStart(buffers.received, recv, s.from,
                                             s.sends_keys ? keys : queries, send, s.to));
  return absl::OkStatus();
}

absl::StatusOr<char*> RingExchange::Receive(int t) {
  Buffers& buffers = buffers_[static_cast<size_t>(t % 2)];
  ELA_RETURN_IF_ERROR(std::exchange(buffers.exchange, nullptr)->Wait());
  return buffers.received;
}

size_t RingExchange::ReplyBytes(int t, bool keys, int64_t rows) const {
  if (keys) return static_cast<size_t>(rows) * bytes_.keys_reply;
  return static_cast<size_t>(rows - step(t).HelpersBegin(rows)) * bytes_.queries_reply;
}

absl::Status RingExchange::StartReply(int t) {
  Buffers& buffers = buffers_[static_cast<size_t>(t % 2)];
  const RingStep s = step(t);
  const size_t recv = ReplyBytes(t, s.sends_keys, rows_->ShardRows(rank_));
  const size_t send = ReplyBytes(t, s.gets_keys, rows_->ShardRows(s.from));
  ELA_ASSIGN_OR_RETURN(buffers.answer, group_->SendRecvStart(buffers.reply, recv, s.to,
                                                             buffers.outgoing, send, s.from));
  return absl::OkStatus();
}

absl::StatusOr<char*> RingExchange::ReceiveReply(int t) {
  Buffers& buffers = buffers_[static_cast<size_t>(t % 2)];
  ELA_RETURN_IF_ERROR(std::exchange(buffers.answer, nullptr)->Wait());
  return buffers.reply;
}

}  // namespace ela::trainer
