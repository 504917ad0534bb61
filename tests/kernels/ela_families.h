// The input families on which a careless implementation overflows, divides by zero or drops terms
// (kernels.md).
#pragma once

#include <functional>
#include <random>
#include <utility>

#include "tests/kernels/ela_testing.h"

namespace ela::testing {

struct Family {
  const char* name;
  /// q and k of a token and feature of d, from two normal numbers.
  std::function<std::pair<double, double>(int64_t t, int64_t f, int64_t d, double a, double b)> of;
  bool huge = false;  // some exponents are of elements that count as 2^20
};

// Counts as 2^20. In float, exponents of that size are known to 1/8: weights that matter are of
// equal ones, or of small ones.
inline constexpr double kHuge = 3e38;

inline double Sign(double x) { return x < 0 ? -1 : 1; }

inline const Family kFamilies[] = {
    {"N(0, 1)", [](auto, auto, auto, double a, double b) { return std::pair(a, b); }},
    {"N(0, 10^2)", [](auto, auto, auto, double a, double b) { return std::pair(10 * a, 10 * b); }},
    {"+-80",
     [](auto, auto, auto, double a, double b) { return std::pair(80 * Sign(a), 80 * Sign(b)); }},
    {"+-1000", [](auto, auto, auto, double a,
                  double b) { return std::pair(1000 * Sign(a), 1000 * Sign(b)); }},
    {"-15", [](auto, auto, auto, double, double) { return std::pair(-15.0, -15.0); }},
    {"opposite 100",
     [](auto, int64_t f, int64_t d, double, double) {
       return f < d / 2 ? std::pair(100.0, -100.0) : std::pair(-100.0, 100.0);
     }},
    {"keys jump", [](int64_t t, auto, auto, double a,
                     double b) { return std::pair(a, b + 1000 * static_cast<double>(t / 50)); }},
    {"keys drift", [](int64_t t, auto, auto, double a,
                      double b) { return std::pair(a, b + 0.5 * static_cast<double>(t)); }},
    {"keys -3e38", [](auto, auto, auto, double a, auto) { return std::pair(a, -kHuge); }, true},
    {"keys 3e38", [](auto, auto, auto, double a, auto) { return std::pair(a, kHuge); }, true},
    {"keys +-3e38",
     [](auto, auto, auto, auto, double b) { return std::pair(1.0, kHuge * Sign(b)); }, true},
    {"opposite 3e38, one key jumps",
     [](int64_t t, int64_t f, auto, auto, auto) {
       return f == 0 ? std::pair(-kHuge, t < 10 ? 0.0 : 1000.0) : std::pair(kHuge, -kHuge);
     },
     true},
};

/// Of hadamard_exp alone: every third key outweighs the others by the one feature in which it is
/// opposite to all queries.
inline const Family kOneFeatureOpposite = {
    "one feature opposite 3e38",
    [](int64_t t, int64_t f, auto, auto, auto) {
      return f == 0 ? std::pair(-kHuge, t % 3 == 0 ? kHuge : -5.0) : std::pair(-5.0, -5.0);
    },
    true};

inline void FillFamily(const Attention& a, const Family& family) {
  std::mt19937_64 engine(7);
  std::normal_distribution<double> normal;
  const Tensor q = a.q(), k = a.k();
  const int64_t heads = q.dim(1), d = q.dim(2);
  for (int64_t i = 0; i < q.numel(); ++i) {
    const double first = normal(engine), second = normal(engine);
    const auto [x, z] = family.of(i / (heads * d), i % d, d, first, second);
    Set(q, i, static_cast<float>(kernels::Bf16(static_cast<float>(x))));
    Set(k, i, static_cast<float>(kernels::Bf16(static_cast<float>(z))));
  }
}

}  // namespace ela::testing
