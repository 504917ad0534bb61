// A random permutation of [0, n) that is computed, not stored.
#pragma once

#include <cstdint>

namespace ela::data {

/// 64-bit mixer (the finaliser of SplitMix64): every input bit reaches every output bit.
inline uint64_t Mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline uint64_t CombineKeys(uint64_t a, uint64_t b) { return Mix64(Mix64(a) ^ b); }

/// Bijection of [0, n) keyed by `key`: a balanced Feistel network over the least even number of
/// bits that holds n, applied again until the value falls in range (under 4 times on average).
/// Pure; the same on every machine.
class Permutation {
 public:
  Permutation(int64_t n, uint64_t key) : n_(static_cast<uint64_t>(n)), key_(key) {
    while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < n_) ++half_bits_;
  }

  int64_t operator()(int64_t i) const {
    auto x = static_cast<uint64_t>(i);
    do {
      x = Encrypt(x);
    } while (x >= n_);
    return static_cast<int64_t>(x);
  }

 private:
  static constexpr int kRounds = 8;

  uint64_t Encrypt(uint64_t x) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = x >> half_bits_;
    uint64_t right = x & mask;
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t next =
          left ^ (Mix64((key_ + static_cast<uint64_t>(round) * n_) ^ Mix64(right)) & mask);
      left = right;
      right = next;
    }
    return (left << half_bits_) | right;
  }

  uint64_t n_;
  uint64_t key_;
  int half_bits_ = 1;
};

}  // namespace ela::data
