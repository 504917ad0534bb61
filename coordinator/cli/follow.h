// Follows one job through the Watch stream, over restarts of the coordinator.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/io.h"
#include "coordinator/cli/job_view.h"

namespace ela::cli {

struct FollowOptions {
  std::string job;
  int64_t history_points = 0;
  std::optional<absl::Duration> longest;        // none: until the end
  std::function<bool(const v1::Job&)> reached;  // more reasons to stop than the job's end
};

class FollowObserver {
 public:
  virtual ~FollowObserver() = default;
  virtual void OnUpdate(const WatchState& state, const v1::WatchUpdate& update) {}
  virtual void OnTick(const WatchState& state) {}  // about five times a second, and at the end
  virtual void OnNotice(const std::string& text) {}
};

enum class FollowEnd { kReached, kInterrupted, kTimedOut, kError };

struct FollowResult {
  FollowEnd end = FollowEnd::kError;
  WatchState state;
  absl::Status status;  // kError
};

/// A coordinator that cannot be reached at all is an error; one that goes away later is waited for,
/// and said so once.
FollowResult Follow(Client& client, const FollowOptions& options, const Io& io,
                    FollowObserver* observer);

}  // namespace ela::cli
