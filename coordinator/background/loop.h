// A thread that does one thing again and again: every period, and at once when woken.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ela::coordinator {

class Loop {
 public:
  Loop(absl::Duration period, std::function<void()> tick);
  ~Loop();  // after the tick that runs
  void Wake();
  void Stop();

 private:
  void Run();

  const absl::Duration period_;
  const std::function<void()> tick_;
  absl::Mutex mutex_;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ela::coordinator
