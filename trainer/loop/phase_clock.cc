#include "trainer/loop/phase_clock.h"

#include <utility>

#include "absl/time/clock.h"

namespace ela::trainer {

PhaseClock::PhaseClock(kernels::CudaDevice* device, Report report)
    : device_(device), report_(std::move(report)) {}

void PhaseClock::Begin(const std::string& phase) {
  range_.reset();
  Mark mark = {phase, {}, absl::Now()};
  if (device_ != nullptr) mark.device = kernels::StreamMoment(*device_);
  marks_.push_back(std::move(mark));
  if (!phase.empty()) range_.emplace(phase.c_str());
  ReportEnded(/*wait=*/false);
}

void PhaseClock::Finish() {
  Begin("");
  ReportEnded(/*wait=*/true);
}

void PhaseClock::ReportEnded(bool wait) {
  while (marks_.size() > 1) {
    const Mark &begin = marks_[0], &end = marks_[1];
    if (device_ != nullptr && !wait && !end.device.Reached()) return;
    const double seconds = device_ != nullptr ? end.device.SecondsSince(begin.device)
                                              : absl::ToDoubleSeconds(end.host - begin.host);
    if (!begin.phase.empty()) report_(begin.phase, seconds);
    marks_.pop_front();
  }
}

}  // namespace ela::trainer
