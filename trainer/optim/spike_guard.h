// Spike guard: a loss that lies z_score deviations above its recent window is a spike, and its
// update is skipped.
//
// Pure in (window, loss), and the loss is the same number on all ranks, so they all decide alike.
// The window is the whole state (TrainerState.spike_window), so a resumed run decides as if it had
// never stopped.
#pragma once

#include <cstdint>
#include <vector>

namespace ela::trainer {

struct SpikeGuard {
  double z_score = 0;          // 0: off
  int64_t size = 100;          // losses in the window
  std::vector<double> window;  // oldest first

  /// True if the window is full and loss > mean + z_score x deviation; the deviation (population)
  /// counts as at least 0.1% of the mean, so that a flat curve does not turn noise into spikes. A
  /// loss that isn't finite is no spike: it has its own policy.
  bool IsSpike(double loss) const;
  /// Takes a finite loss into the window. A spike enters cut down to the threshold: the window
  /// follows a lasting change instead of skipping for ever.
  void Add(double loss);

 private:
  double Threshold() const;
};

}  // namespace ela::trainer
