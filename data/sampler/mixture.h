// Which source the k-th sample of a run comes from: exact shares, stateless.
#pragma once

#include <cstdint>
#include <vector>

namespace ela::data {

/// Weights become whole shares q_s of 2^20, by largest remainder (a positive weight gets at least
/// 1). Draws come in blocks of 1024. In every block source s has floor or ceil of its exact share
/// 1024 q_s / 2^20, and in 1024 blocks exactly q_s draws: the fractional parts are laid end to end
/// on a line, and block b takes every 1024th point of it from b on, so a source shorter than 1024
/// is hit at most once a block and once per unit of its length in all. Inside a block the order is
/// a permutation keyed by (seed, block). With one source draw k is its k-th.
class Mixture {
 public:
  static constexpr int64_t kBlock = 1024;
  static constexpr int64_t kUnits = kBlock * kBlock;

  struct Draw {
    int source = 0;
    int64_t ordinal =
        0;  // how many draws of this source came before in source order: each number once
  };

  /// At least one weight is positive, all are finite and >= 0, and there are fewer than 2^20 of
  /// them.
  Mixture(const std::vector<double>& weights, uint64_t seed);

  /// O(sources).
  Draw At(int64_t k) const;

  /// q_s; they add up to kUnits.
  const std::vector<int64_t>& shares() const { return shares_; }

 private:
  int64_t DrawsBefore(int source, int64_t block) const;

  std::vector<int64_t> shares_;
  std::vector<int64_t> line_begin_;  // where the source's fractional part starts on the line
  uint64_t seed_;
};

}  // namespace ela::data
