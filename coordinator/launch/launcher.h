// What the coordinator asks of an engine that runs ranks. One conformance suite
// (tests/coordinator/launch) runs against every engine. "I cannot see the job" is an error status,
// never an ended attempt.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/supervisor/records.h"

namespace ela::coordinator {

struct LaunchKey {
  std::string job_id;
  int32_t attempt = 0;
  bool operator==(const LaunchKey&) const = default;
};

struct LaunchSpec {
  LaunchKey key;
  int ranks = 1;
  std::string run_dir;      // absolute
  std::string job_yaml;     // the resolved job
  std::string coordinator;  // host:port that rank 0 reports to
  std::string token;        // goes to a 0600 file, never to a command line
};

struct Observation {
  bool ended = false;
  ExitRecord exit;       // when ended
  int64_t activity = 0;  // changes whenever the attempt has visibly done work; 0: unknown
};

/// Blocking calls of bounded time, safe from any thread and safe to repeat.
class Launcher {
 public:
  virtual ~Launcher() = default;
  /// InvalidArgument with what to change when the spec can never run here.
  virtual absl::Status Validate(const LaunchSpec& spec) = 0;
  /// The handle of an attempt that was launched, by this coordinator or one before it.
  virtual absl::StatusOr<std::optional<std::string>> Find(const LaunchKey& key) = 0;
  /// Starts the ranks at most once a key: AlreadyExists when the attempt was launched before.
  virtual absl::StatusOr<std::string> Launch(const LaunchSpec& spec) = 0;
  virtual absl::StatusOr<Observation> Observe(const std::string& handle) = 0;
  /// Asks for a checkpoint and an exit; after the deadline the ranks are stopped by force.
  virtual absl::Status Signal(const std::string& handle, int64_t deadline_ms) = 0;
  /// As Signal with a short grace; with `hung` it first notes what the ranks are doing.
  virtual absl::Status Stop(const std::string& handle, int64_t grace_ms, bool hung) = 0;
  /// Every attempt of this state directory that may have processes.
  virtual absl::StatusOr<std::vector<LaunchKey>> ListOwned() = 0;
  /// The file that holds a rank's output; rank -1: the engine's own.
  virtual std::string LogPath(const LaunchKey& key, const std::string& run_dir, int rank) = 0;
  /// The attempt has ended and is recorded: drops what only a running one needs.
  virtual absl::Status Forget(const std::string& handle) = 0;
};

}  // namespace ela::coordinator
