// The messages of a ring of attention (ring_schedule.h) and their buffers: what a step brings is
// received while the step before is computed, and results go back while the next one is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/layers/layer_context.h"
#include "trainer/layers/token_rows.h"
#include "trainer/parallel/communicator.h"
#include "trainer/parallel/ring_schedule.h"

namespace ela::trainer {

/// Bytes of a message for each row that it is about.
struct RingBytes {
  size_t keys = 0, queries = 0;              // what is sent around
  size_t keys_reply = 0, queries_reply = 0;  // what comes back to their owner
};

/// One pass around the ring. Calls, for t = 1 .. steps(): Start(t), Receive(t), then Start(t + 1)
/// before step t is computed, StartReply(t), and ReceiveReply(t) once step t + 1 is.
class RingExchange {
 public:
  /// Takes its buffers from the scratch: at most two of each kind. `group` null: no steps.
  RingExchange(const LayerContext& layer, Communicator* group, const TokenRows& rows, bool causal,
               const RingBytes& bytes);

  int steps() const { return steps_; }
  RingStep step(int t) const { return RingStepOf(t, rank_, shards_, causal_); }
  bool sends_queries() const { return steps_ > 0 && !step(steps_).sends_keys; }

  /// Sends this rank's keys or queries, whole, as the step wants; both must stay until Receive(t).
  absl::Status Start(int t, const void* keys, const void* queries);
  /// The keys or queries of rank step(t).from; valid until Start(t + 2).
  absl::StatusOr<char*> Receive(int t);
  /// Where to put the result for rank step(t).from.
  char* Outgoing(int t) { return buffers_[static_cast<size_t>(t % 2)].outgoing; }
  absl::Status StartReply(int t);
  /// The result that rank step(t).to made of what this rank sent.
  absl::StatusOr<char*> ReceiveReply(int t);

 private:
  struct Buffers {
    char *received = nullptr, *outgoing = nullptr, *reply = nullptr;
    std::unique_ptr<Pending> exchange, answer;
  };
  /// Of the reply to `rows` rows of keys or queries of step t.
  size_t ReplyBytes(int t, bool keys, int64_t rows) const;

  Communicator* group_;
  const TokenRows* rows_;
  bool causal_;
  RingBytes bytes_;
  int shards_, rank_, steps_;
  std::array<Buffers, 2> buffers_;  // by t % 2
};

}  // namespace ela::trainer
