// The pairs of characters that stand side by side somewhere in a vocabulary.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace ela::data {

/// Has() never misses a pair that was added; outside ASCII it may, rarely, claim one that was not,
/// which costs its user time but no correctness.
class JoinablePairs {
 public:
  JoinablePairs() : hashed_(kBits / 64) {}

  void Add(uint32_t a, uint32_t b) {
    if (a < 128 && b < 128) {
      ascii_[a][b / 64] |= uint64_t{1} << (b % 64);
    } else {
      const uint32_t bit = Bit(a, b);
      hashed_[bit / 64] |= uint64_t{1} << (bit % 64);
    }
  }

  bool HasAscii(uint32_t a, uint32_t b) const { return ascii_[a][b / 64] >> (b % 64) & 1; }
  bool Has(uint32_t a, uint32_t b) const {
    if (a < 128 && b < 128) return HasAscii(a, b);
    const uint32_t bit = Bit(a, b);
    return hashed_[bit / 64] >> (bit % 64) & 1;
  }

 private:
  static constexpr uint32_t kBits = uint32_t{1} << 20;
  static uint32_t Bit(uint32_t a, uint32_t b) {
    const uint64_t key = static_cast<uint64_t>(a) << 32 | b;
    return static_cast<uint32_t>((key * 0x9e3779b97f4a7c15u) >> 44);
  }

  std::array<std::array<uint64_t, 2>, 128> ascii_{};
  std::vector<uint64_t> hashed_;
};

}  // namespace ela::data
