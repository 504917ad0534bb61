// Notices, and on a terminal one line of progress under them.
#pragma once

#include <chrono>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "data/corpus/build.h"

namespace ela::data {

/// Thread-safe. Writes to standard error; draws progress only if that is a terminal, at most ten
/// times a second.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();  // takes the line away
  void Notice(const std::string& message);
  void Show(const BuildProgress& progress);
  double seconds() const;  // since the line was made

 private:
  void Clear() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  absl::Mutex mutex_;
  std::chrono::steady_clock::time_point drawn_ ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point encoding_since_ ABSL_GUARDED_BY(mutex_);
  BuildProgress first_ ABSL_GUARDED_BY(mutex_);  // rates and ETA count from here: a resumed build
  bool encoding_ ABSL_GUARDED_BY(mutex_) = false;
  bool drawn_any_ ABSL_GUARDED_BY(mutex_) = false;
};

/// "12.3 M", "45": three digits and a unit of a thousand.
std::string HumanCount(double value);

}  // namespace ela::data
