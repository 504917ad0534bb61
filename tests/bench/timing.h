// Wall time of a piece of work, for the tables that benchmarks print.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace ela::bench {

/// One run, without warm-up.
template <class Work>
double OnceSeconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Median of `runs` timed runs after two of warm-up.
template <class Work>
double MedianSeconds(const Work& work, int runs = 20) {
  std::vector<double> seconds;
  for (int i = -2; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (i >= 0) seconds.push_back(elapsed.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  return seconds[static_cast<size_t>(runs / 2)];
}

}  // namespace ela::bench
