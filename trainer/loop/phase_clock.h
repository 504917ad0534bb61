// Where a step's time goes, phase by phase. On a device a phase lasts from the moment its stream
// comes to it until it comes to the next one, by the device's clock; events mark the moments, and
// nothing waits for them: a phase is reported once the device is past it. Elsewhere the host's
// clock counts. Phases are ranges on a profiler's timeline, too.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "kernels/device.h"

namespace ela::trainer {

class PhaseClock {
 public:
  using Report = std::function<void(const std::string& phase, double seconds)>;

  /// `device` may be null: the host.
  PhaseClock(kernels::CudaDevice* device, Report report);

  /// Ends the phase under way and begins `phase`; empty: none.
  void Begin(const std::string& phase);
  /// Ends the phase under way and waits until all are reported.
  void Finish();

 private:
  struct Mark {
    std::string phase;  // that begins here
    kernels::StreamMoment device;
    absl::Time host;
  };
  void ReportEnded(bool wait);

  kernels::CudaDevice* device_;
  Report report_;
  std::deque<Mark> marks_;  // oldest first; the last one's phase is under way
  std::optional<kernels::TraceRange> range_;
};

}  // namespace ela::trainer
