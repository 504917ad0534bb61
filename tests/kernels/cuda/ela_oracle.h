// Exact linear attention by its definition, in double: weights of every pair in the log domain,
// softmax over what a row sees, and the chain rule. O(L^2 D); independent of states and gauges.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/ela/ela.h"

namespace ela::testing::device {

using kernels::ElaConfig;
using kernels::FeatureMap;
using kernels::Spans;

/// Inputs and results of one attention, dense [T, H, D] or [T, H, Dv] in double.
struct Attention {
  ElaConfig config;
  Spans spans;
  std::vector<double> q, k, v, dy;                        // inputs, already rounded to storage
  std::vector<double> y, lse, dq, dk, dv;                 // results
  std::vector<double> y_size, dq_size, dk_size, dv_size;  // sums of absolute terms

  int64_t rows() const { return spans.begin.back(); }
};

namespace oracle {

constexpr double kEps = 1e-6;

struct Pair {
  double log_weight;
  std::vector<double> dq, dk;  // of the log weight
};

inline double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

inline Pair ExpPair(const double* q, const double* k, int64_t n) {
  Pair pair;
  double top = q[0] + k[0], sum = 0;
  for (int64_t d = 1; d < n; ++d) top = std::max(top, q[d] + k[d]);
  for (int64_t d = 0; d < n; ++d) {
    pair.dq.push_back(std::exp(q[d] + k[d] - top));
    sum += pair.dq.back();
  }
  for (double& x : pair.dq) x /= sum;
  pair.dk = pair.dq;
  pair.log_weight = top + std::log(sum);
  return pair;
}

inline Pair DistancePair(const double* q, const double* k, int64_t n, double sign) {
  Pair pair;
  double weight = kEps;
  for (int64_t d = 0; d < n; ++d) weight += (q[d] + sign * k[d]) * (q[d] + sign * k[d]);
  for (int64_t d = 0; d < n; ++d) {
    pair.dq.push_back(2 * (q[d] + sign * k[d]) / weight);
    pair.dk.push_back(sign * pair.dq.back());
  }
  pair.log_weight = std::log(weight);
  return pair;
}

inline Pair ModulatedPair(const double* q, const double* k, int64_t n) {
  Pair pair;
  const double q2 = Dot(q, q, n), k2 = Dot(k, k, n);
  const double qn = std::max(std::sqrt(q2), 1e-12), kn = std::max(std::sqrt(k2), 1e-12);
  const double cosine = Dot(q, k, n) / (qn * kn), base = cosine + 1 + kEps;
  for (int64_t d = 0; d < n; ++d) {
    pair.dq.push_back(2 * q[d] / (q2 + 1) + (k[d] / kn - cosine * q[d] / qn) / qn / base);
    pair.dk.push_back(2 * k[d] / (k2 + 1) + (q[d] / qn - cosine * k[d] / kn) / kn / base);
  }
  pair.log_weight = std::log(base) + std::log(q2 + 1) + std::log(k2 + 1);
  return pair;
}

/// n elements, of which those beyond 2^20 count as 2^20.
inline std::vector<double> Saturated(const double* x, int64_t n) {
  std::vector<double> all(x, x + n);
  for (double& at : all) at = std::clamp(at, -0x1p20, 0x1p20);
  return all;
}

inline Pair PairOf(FeatureMap kernel, const double* query, const double* key, int64_t n) {
  const std::vector<double> saturated_q = Saturated(query, n), saturated_k = Saturated(key, n);
  const double *q = saturated_q.data(), *k = saturated_k.data();
  switch (kernel) {
    case FeatureMap::kHadamardExp:
      return ExpPair(q, k, n);
    case FeatureMap::kSumSquared:
      return DistancePair(q, k, n, 1);
    case FeatureMap::kSubSquared:
      return DistancePair(q, k, n, -1);
    case FeatureMap::kModulatedDot:
      return ModulatedPair(q, k, n);
  }
  return {};
}

/// Row i of head h, which sees rows [first, last).
inline void RunRow(Attention* a, int64_t i, int64_t h, int64_t first, int64_t last) {
  const ElaConfig& c = a->config;
  const int64_t n = c.head_dim, m = c.value_dim;
  const auto at = [&](int64_t row, int64_t width) {
    return static_cast<size_t>((row * c.num_heads + h) * width);
  };
  const double decay = c.log_decay.empty() ? 0 : c.log_decay[static_cast<size_t>(h)];
  std::vector<Pair> pairs;
  double top = -1e300, sum = 0;
  for (int64_t j = first; j < last; ++j) {
    pairs.push_back(PairOf(c.kernel, &a->q[at(i, n)], &a->k[at(j, n)], n));
    pairs.back().log_weight += decay * static_cast<double>(i - j);
    top = std::max(top, pairs.back().log_weight);
  }
  for (const Pair& pair : pairs) sum += std::exp(pair.log_weight - top);
  const double lse = top + std::log(sum);
  a->lse[at(i, 1)] = lse;
  double* y = &a->y[at(i, m)];
  for (int64_t j = first; j < last; ++j) {
    const double p = std::exp(pairs[static_cast<size_t>(j - first)].log_weight - lse);
    for (int64_t e = 0; e < m; ++e) {
      y[e] += p * a->v[at(j, m) + static_cast<size_t>(e)];
      a->y_size[at(i, m) + static_cast<size_t>(e)] +=
          p * std::fabs(a->v[at(j, m) + static_cast<size_t>(e)]);
    }
  }
  const double* dy = &a->dy[at(i, m)];
  const double delta = Dot(dy, y, m);
  for (int64_t j = first; j < last; ++j) {
    const Pair& pair = pairs[static_cast<size_t>(j - first)];
    const double p = std::exp(pair.log_weight - lse);
    const double dp = Dot(dy, &a->v[at(j, m)], m), g = p * (dp - delta);
    const double size = p * (std::fabs(dp) + std::fabs(delta));
    for (int64_t d = 0; d < n; ++d) {
      const auto u = static_cast<size_t>(d);
      a->dq[at(i, n) + u] += g * pair.dq[u];
      a->dk[at(j, n) + u] += g * pair.dk[u];
      a->dq_size[at(i, n) + u] += size * std::fabs(pair.dq[u]);
      a->dk_size[at(j, n) + u] += size * std::fabs(pair.dk[u]);
    }
    for (int64_t e = 0; e < m; ++e) {
      a->dv[at(j, m) + static_cast<size_t>(e)] += p * dy[e];
      a->dv_size[at(j, m) + static_cast<size_t>(e)] += std::fabs(p * dy[e]);
    }
  }
}

}  // namespace oracle

/// Fills in the results from the inputs.
inline void RunOracle(Attention* a) {
  const ElaConfig& c = a->config;
  const auto heads = static_cast<size_t>(c.num_heads), rows = static_cast<size_t>(a->rows());
  const size_t keys = rows * heads * static_cast<size_t>(c.head_dim);
  const size_t values = rows * heads * static_cast<size_t>(c.value_dim);
  a->lse.assign(rows * heads, 0);
  for (auto* x : {&a->dq, &a->dk, &a->dq_size, &a->dk_size}) x->assign(keys, 0);
  for (auto* x : {&a->y, &a->dv, &a->y_size, &a->dv_size}) x->assign(values, 0);
  const auto run_head = [a, &c](int64_t h) {
    for (size_t s = 0; s < a->spans.sequence.size(); ++s) {
      const int64_t begin = a->spans.begin[s], end = a->spans.begin[s + 1];
      for (int64_t i = begin; i < end; ++i) oracle::RunRow(a, i, h, begin, c.causal ? i + 1 : end);
    }
  };
  std::vector<std::thread> threads;
  for (int64_t h = 0; h < c.num_heads; ++h) threads.emplace_back(run_head, h);
  for (std::thread& thread : threads) thread.join();
}

/// The input families every kernel must survive (N(0, 1) values and gradients throughout).
enum class Family : uint8_t {
  kNormal,    // N(0, 1)
  kWide,      // N(0, 10^2)
  kEighty,    // +-80
  kThousand,  // +-1000
  kLow,       // q = k = -15
  kSplit,     // q = +100, k = -100 on half the features and the reverse on the rest
  kJumping,   // a key that jumps by 1000 every 50 tokens
  kDrifting,  // keys that drift by 0.5 per token
  // Elements of 3e38, which count as 2^20. Exponents of that size are known to 1/8: those of a row
  // differ by 0 or by so much that one has no weight.
  kFloor,     // k = -3e38
  kCeiling,   // k = 3e38
  kPoles,     // k = +-3e38, q = 1
  kOpposite,  // q = 3e38, k = -3e38; but feature 0: q = -3e38, k = 0 and from row 10 on 1000
  kAcross,    // q = k = -5; but feature 0: q = -3e38 and every third k = 3e38, which outweighs all
};
inline constexpr Family kFamilies[] = {Family::kNormal,   Family::kWide,    Family::kEighty,
                                       Family::kThousand, Family::kLow,     Family::kSplit,
                                       Family::kJumping,  Family::kDrifting};
inline constexpr Family kHugeFamilies[] = {Family::kFloor, Family::kCeiling, Family::kPoles,
                                           Family::kOpposite, Family::kAcross};

inline const char* NameOf(Family family) {
  constexpr const char* kNames[] = {"normal", "wide",     "eighty",   "thousand", "low",
                                    "split",  "jumping",  "drifting", "floor",    "ceiling",
                                    "poles",  "opposite", "across"};
  return kNames[static_cast<size_t>(family)];
}

/// Query and key of row i, feature d, before rounding to storage.
inline std::pair<double, double> Logits(Family family, int64_t i, int64_t d, int64_t dim,
                                        std::mt19937_64* engine) {
  constexpr double kHuge = 3e38;
  std::normal_distribution<double> normal;
  const double a = normal(*engine), b = normal(*engine);
  const auto signs = [&](double size) {
    return std::pair(std::copysign(size, a), std::copysign(size, b));
  };
  switch (family) {
    case Family::kNormal:
      return {a, b};
    case Family::kWide:
      return {10 * a, 10 * b};
    case Family::kEighty:
      return signs(80);
    case Family::kThousand:
      return signs(1000);
    case Family::kLow:
      return {-15, -15};
    case Family::kSplit:
      return d < dim / 2 ? std::pair(100.0, -100.0) : std::pair(-100.0, 100.0);
    case Family::kJumping:
      return {a, b + (d == i / 50 % dim ? 1000.0 * static_cast<double>(i / 50) : 0)};
    case Family::kDrifting:
      return {a, b + 0.5 * static_cast<double>(i)};
    case Family::kFloor:
      return {a, -kHuge};
    case Family::kCeiling:
      return {a, kHuge};
    case Family::kPoles:
      return {1, std::copysign(kHuge, b)};
    case Family::kOpposite:
      return d == 0 ? std::pair(-kHuge, i < 10 ? 0.0 : 1000.0) : std::pair(kHuge, -kHuge);
    case Family::kAcross:
      return d == 0 ? std::pair(-kHuge, i % 3 == 0 ? kHuge : -5.0) : std::pair(-5.0, -5.0);
  }
  return {0, 0};
}

/// Inputs of a family; `round` takes a number to what storage holds.
template <class Round>
Attention MakeAttention(const ElaConfig& config, const Spans& spans, Family family, uint64_t seed,
                        const Round& round) {
  Attention a;
  a.config = config;
  a.spans = spans;
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t h = 0; h < config.num_heads; ++h) {
      for (int64_t d = 0; d < config.head_dim; ++d) {
        const auto [q, k] = Logits(family, i, d, config.head_dim, &engine);
        a.q.push_back(round(q));
        a.k.push_back(round(k));
      }
      for (int64_t e = 0; e < config.value_dim; ++e) {
        a.v.push_back(round(normal(engine)));
        a.dy.push_back(round(normal(engine)));
      }
    }
  }
  RunOracle(&a);
  return a;
}

}  // namespace ela::testing::device
