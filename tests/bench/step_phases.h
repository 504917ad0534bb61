// The phases of training steps, timed for the tables of benchmarks.
#pragma once

#include <time.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "trainer/loop/phase_clock.h"

namespace ela::bench {

inline double CpuNow() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

inline double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x.empty() ? 0 : x[x.size() / 2];
}

/// Seconds of each phase, a sample a step (of "forward": a micro-batch).
class StepPhases {
 public:
  explicit StepPhases(kernels::CudaDevice* device)
      : clock_(device, [this](const std::string& phase, double s) { wall_[phase].push_back(s); }) {}

  template <class Work>
  auto Time(const char* phase, const Work& work) {
    const double start = CpuNow();
    clock_.Begin(phase);
    auto result = work();
    clock_.Begin("");
    cpu_[phase].push_back(CpuNow() - start);
    return result;
  }
  /// Waits for the device.
  void EndStep() { clock_.Finish(); }
  void Forget() {
    wall_.clear();
    cpu_.clear();
  }
  double wall(const char* phase) const { return Of(wall_, phase); }
  double cpu(const char* phase) const { return Of(cpu_, phase); }

 private:
  using Samples = std::map<std::string, std::vector<double>>;
  static double Of(const Samples& samples, const char* phase) {
    const auto found = samples.find(phase);
    return found == samples.end() ? 0 : Median(found->second);
  }
  Samples wall_, cpu_;
  trainer::PhaseClock clock_;
};

}  // namespace ela::bench
