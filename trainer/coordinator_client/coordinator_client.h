// What rank 0 of an attempt tells the coordinator, and what it hears back. Training never waits for
// it: one background thread sends heartbeats and step reports, and connects again for as long as it
// takes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ela/v1/trainer.pb.h"

namespace ela::trainer {

/// Thread-safe. Used by rank 0 only; the trainer shares the two flags with the other ranks itself.
class CoordinatorClient {
 public:
  /// Prepares the connection; no traffic yet, so it does not fail when the coordinator is away.
  /// `token_file` is a 0600 file with the attempt's token. Errors: InvalidArgument or NotFound with
  /// the path.
  static absl::StatusOr<std::unique_ptr<CoordinatorClient>> Connect(const std::string& address,
                                                                    const std::string& job,
                                                                    int32_t attempt,
                                                                    const std::string& token_file);

  /// Stops the background thread within about a second; unsent reports are dropped (Goodbye sends
  /// them first).
  ~CoordinatorClient();

  /// Introduces the attempt and starts the background thread. `ranks`: rank, host, pid,
  /// metrics_address of every rank; `first_step`: the committed step it resumed from, 0 for none.
  /// Tries for `patience`; when the coordinator is away longer, returns OK all the same and the
  /// thread goes on trying. Error: FailedPrecondition (superseded: exit 76), Unauthenticated (wrong
  /// token: exit 1).
  absl::Status Hello(const std::vector<v1::RankInfo>& ranks, int64_t first_step,
                     absl::Duration patience = absl::Seconds(10));

  /// "init", "step", "checkpoint", "eval", "stopping": goes with the next heartbeat. A hang is
  /// judged by it.
  void SetPhase(std::string_view phase);

  /// Queues the state after one step (loss and tokens_per_second also become a point of the curve).
  /// Never blocks: the newest progress wins, and when the coordinator is away long the oldest
  /// queued points are thinned.
  void ReportStep(const v1::Progress& progress);

  /// The coordinator asked for a checkpoint and an exit with 75 (pause or preemption). Stays true.
  bool checkpoint_and_exit() const;

  /// A newer attempt exists (or this one was declared over): write nothing more, exit with 76.
  /// Stays true.
  bool superseded() const;

  /// Blocks until the coordinator has answered, with retries through its restarts, up to
  /// `deadline`. committed = false asks leave to commit the checkpoint of `step`; committed = true
  /// tells that the catalog has it. Errors: FailedPrecondition (superseded), DeadlineExceeded
  /// (coordinator away; a checkpoint that was not granted must not be committed).
  absl::Status CommitCheckpoint(int64_t step, int64_t bytes, bool committed,
                                absl::Duration deadline = absl::Minutes(5));

  /// Sends what is queued and why the attempt ends; best effort within `patience`. Last call.
  void Goodbye(v1::Outcome outcome, std::string_view reason,
               absl::Duration patience = absl::Seconds(5));

  CoordinatorClient(const CoordinatorClient&) = delete;
  CoordinatorClient& operator=(const CoordinatorClient&) = delete;

 private:
  struct Impl;
  explicit CoordinatorClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ela::trainer
