#include "trainer/optim/spike_guard.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ela::trainer {

// Infinite while there is nothing to compare with.
double SpikeGuard::Threshold() const {
  if (z_score <= 0 || window.empty() || static_cast<int64_t>(window.size()) < size) {
    return std::numeric_limits<double>::infinity();
  }
  const double n = static_cast<double>(window.size());
  double sum = 0, squares = 0;
  for (const double loss : window) sum += loss;
  const double mean = sum / n;
  for (const double loss : window) squares += (loss - mean) * (loss - mean);
  return mean + z_score * std::max(std::sqrt(squares / n), 1e-3 * std::fabs(mean));
}

bool SpikeGuard::IsSpike(double loss) const { return std::isfinite(loss) && loss > Threshold(); }

void SpikeGuard::Add(double loss) {
  if (!std::isfinite(loss)) return;
  window.push_back(std::min(loss, Threshold()));
  const int64_t surplus = static_cast<int64_t>(window.size()) - std::max<int64_t>(size, 0);
  if (surplus > 0) window.erase(window.begin(), window.begin() + surplus);
}

}  // namespace ela::trainer
