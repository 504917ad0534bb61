// The run folder: job.resolved.yaml, metrics.jsonl, logs/, checkpoints/, exit.json. With a
// coordinator each attempt has its own attempts/<n>/ with logs and exit records, and logs points at
// the newest.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::trainer {

struct RunFolder {
  std::string path;
  std::string attempt_dir;  // attempts/<n>, or `path` without a coordinator
  std::string log_dir;

  /// Creates what this rank needs. `attempt` 0: no coordinator.
  static absl::StatusOr<RunFolder> Create(const std::string& path, int64_t attempt, int rank);
  std::string log_file(int rank) const;
};

/// One line of metrics.jsonl. Floats in full precision; NaN and infinities as null.
struct StepRecord {
  int64_t step = 0;
  double loss = 0, aux_loss = 0, grad_norm = 0, lr = 0;
  int64_t tokens = 0;  // valid targets so far
  double step_seconds = 0;
  bool leaks_future = false;
};
struct EvalRecord {
  int64_t step = 0;
  double loss = 0;
  int64_t tokens = 0;
  bool leaks_future = false;
};
std::string ToJsonLine(const StepRecord& record);
std::string ToJsonLine(const EvalRecord& record);

/// metrics.jsonl of rank 0: append-only, one write a line.
class MetricsFile {
 public:
  /// Drops lines of steps after `last_step` (a resume repeats them) and a torn last line.
  static absl::StatusOr<std::unique_ptr<MetricsFile>> Open(const std::string& path,
                                                           int64_t last_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  absl::Status Append(const std::string& line);

 private:
  explicit MetricsFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
};

}  // namespace ela::trainer
