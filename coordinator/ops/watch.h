// Watch: what a watcher has not seen yet. A watcher is three numbers, so a slow one costs nothing
// and skips ahead.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

class WatchCursor {
 public:
  static absl::StatusOr<WatchCursor> Open(const Core& core, const v1::WatchRequest& request);

  /// The next message, or nothing for now. Events come one a message, in order; the job and the
  /// newest progress with them; points in ascending steps, at most a few hundred at once.
  std::optional<v1::WatchUpdate> Next(const Core& core);
  /// The job has ended and everything was told.
  bool finished() const { return finished_; }
  const std::string& job_id() const { return job_id_; }

 private:
  bool AddPoints(const Core& core, v1::WatchUpdate* update);
  bool AddEvent(const Core& core, int64_t last_sequence, v1::WatchUpdate* update);

  std::string job_id_;
  bool first_ = true;
  bool finished_ = false;
  size_t history_points_ = 0;
  int64_t version_ = -1;
  int64_t sequence_ = 0;
  int64_t step_ = -1;
  int64_t epoch_ = 0;
  std::string progress_;  // serialized, as last told
  std::string reason_;
};

}  // namespace ela::coordinator::ops
