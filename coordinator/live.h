// What the coordinator knows of a running job without having to keep it: the ranks will tell it
// again, or metrics.jsonl holds it. Guarded by the job table's lock.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ela/v1/coordinator.pb.h"

namespace ela::coordinator {

/// The loss curve in bounded memory: the newest points in full, older ones thinned ever more.
class LossHistory {
 public:
  static constexpr size_t kRecent = 2048;
  static constexpr size_t kOlder = 2048;

  void Add(const v1::StepPoint& point);
  /// Forgets the points after `step`: the job resumed from there. Cursors into the curve notice by
  /// epoch().
  void RewindTo(int64_t step);
  int64_t epoch() const { return epoch_; }
  int64_t rewound_to() const { return rewound_to_; }
  /// Points with a step above `after`, ascending, at most `limit` of them (evenly thinned, the
  /// newest always there).
  std::vector<v1::StepPoint> After(int64_t after, size_t limit) const;
  size_t size() const { return older_.size() + recent_.size(); }
  /// Reads the `step`, `loss` and speed of a metrics.jsonl file; lines that cannot be read are
  /// skipped. The last step's values go to `progress` (not null).
  static LossHistory FromMetricsFile(const std::string& path, v1::Progress* progress);

 private:
  std::vector<v1::StepPoint> older_;
  std::vector<v1::StepPoint> recent_;
  int64_t epoch_ = 0;
  int64_t rewound_to_ = 0;
};

/// Durations of the last steps, for what counts as a hang.
class StepTimes {
 public:
  void Add(double seconds);
  /// 0 when nothing is known.
  double P99() const;
  double Mean() const;

 private:
  static constexpr size_t kWindow = 512;
  std::vector<double> seconds_;
  size_t next_ = 0;
};

struct Live {
  v1::Progress progress;
  LossHistory history;
  StepTimes step_times;
  std::string phase = "init";
  std::string queue_reason;       // why a QUEUED job waits
  int32_t attempt = 0;            // the attempt that the fields below are about
  int64_t attempt_mono_ms = 0;    // when it began, by this process's clock
  int64_t heartbeat_mono_ms = 0;  // 0: none heard by this process
  int64_t heartbeat_unix_ms = 0;
  int64_t progress_mono_ms = 0;  // the last sign that it does something
  int64_t activity = 0;          // the launcher's mark of work done, to see it change
  int64_t retry_mono_ms = 0;     // in BACKOFF: when it is over
  int64_t retry_unix_ms = 0;  // the record's next_retry_unix_ms that retry_mono_ms was taken from
  bool history_loaded = false;
  double productive_seconds = 0;

  /// Starts afresh when `number` is another attempt than the one known.
  void BeginAttempt(int32_t number, int64_t now_mono_ms);
};

}  // namespace ela::coordinator
