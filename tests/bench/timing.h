// Wall time of a piece of work, for the tables that benchmarks print.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace ela::bench {

/// CPU time of one run of single-threaded work, which other work on the machine hardly changes.
template <class Work>
double CpuSeconds(const Work& work) {
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  work();
  return now() - start;
}

template <class Work>
double WallSeconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Median of `runs` timed runs after two of warm-up.
template <class Work>
double MedianSeconds(const Work& work, int runs = 20) {
  std::vector<double> seconds;
  for (int i = -2; i < runs; ++i) {
    const double elapsed = WallSeconds(work);
    if (i >= 0) seconds.push_back(elapsed);
  }
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  return seconds[static_cast<size_t>(runs / 2)];
}

}  // namespace ela::bench
