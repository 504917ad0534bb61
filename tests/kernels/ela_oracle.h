// Exact linear attention straight from its definition, pair by pair, in double and in the log
// domain: O(L^2), no features, no states. Its gradients are written from the definition too.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "kernels/ela/ela.h"
#include "tests/support/op_testing.h"

namespace ela::testing {

using kernels::ElaConfig;
using kernels::FeatureMap;
using kernels::Spans;

/// ln k(q, k) of one pair, and its gradients.
struct PairWeight {
  double log = 0;
  std::vector<double> dq, dk;
};
using PairFunction = std::function<PairWeight(const double* q, const double* k, int64_t d)>;

inline PairWeight HadamardExpPair(const double* q, const double* k, int64_t d) {
  double largest = -1e300, sum = 0;
  for (int64_t i = 0; i < d; ++i) largest = std::fmax(largest, q[i] + k[i]);
  for (int64_t i = 0; i < d; ++i) sum += std::exp(q[i] + k[i] - largest);
  PairWeight w{largest + std::log(sum), {}, {}};
  for (int64_t i = 0; i < d; ++i) w.dq.push_back(std::exp(q[i] + k[i] - w.log));
  w.dk = w.dq;
  return w;
}

/// |q + sign k|^2 + 1e-6.
inline PairWeight SquaredPair(const double* q, const double* k, int64_t d, double sign) {
  double square = 1e-6;
  for (int64_t i = 0; i < d; ++i) square += (q[i] + sign * k[i]) * (q[i] + sign * k[i]);
  PairWeight w{std::log(square), {}, {}};
  for (int64_t i = 0; i < d; ++i) w.dq.push_back(2 * (q[i] + sign * k[i]) / square);
  for (double g : w.dq) w.dk.push_back(sign * g);
  return w;
}

/// (q^ . k^ + 1 + 1e-6) (|q|^2 + 1) (|k|^2 + 1). Rows must not be zero. The first factor is taken
/// as |q^ + k^|^2 / 2 + 1e-6: the same, without cancellation.
inline PairWeight ModulatedDotPair(const double* q, const double* k, int64_t d) {
  double qq = 0, kk = 0, square = 0, dot = 0;
  for (int64_t i = 0; i < d; ++i) qq += q[i] * q[i], kk += k[i] * k[i];
  const double qn = std::sqrt(qq), kn = std::sqrt(kk);
  for (int64_t i = 0; i < d; ++i) {
    square += (q[i] / qn + k[i] / kn) * (q[i] / qn + k[i] / kn);
    dot += q[i] / qn * k[i] / kn;
  }
  const double first = square / 2 + 1e-6;
  PairWeight w{std::log(first) + std::log(qq + 1) + std::log(kk + 1), {}, {}};
  for (int64_t i = 0; i < d; ++i) {
    w.dq.push_back((k[i] / kn - dot * q[i] / qn) / qn / first + 2 * q[i] / (qq + 1));
    w.dk.push_back((q[i] / qn - dot * k[i] / kn) / kn / first + 2 * k[i] / (kk + 1));
  }
  return w;
}

inline PairFunction PairOf(FeatureMap kernel) {
  switch (kernel) {
    case FeatureMap::kHadamardExp:
      return HadamardExpPair;
    case FeatureMap::kSumSquared:
      return [](auto q, auto k, auto d) { return SquaredPair(q, k, d, 1); };
    case FeatureMap::kSubSquared:
      return [](auto q, auto k, auto d) { return SquaredPair(q, k, d, -1); };
    case FeatureMap::kModulatedDot:
      return ModulatedDotPair;
  }
  return nullptr;
}

/// Dense [T, H, D] and [T, H, Dv] in double.
struct OracleInput {
  std::vector<double> q, k, v, dy;
};
struct OracleOutput {
  std::vector<double> y, lse, dq, dk, dv;
  /// The sums of the absolute values of the terms that each number is the sum of: what rounding is
  /// relative to where terms cancel.
  std::vector<double> dq_terms, dk_terms, dv_terms;
};

class ElaOracle {
 public:
  ElaOracle(const ElaConfig& config, const Spans& spans, PairFunction pair, const OracleInput& in)
      : config_(config), in_(in), pair_(std::move(pair)) {
    for (auto* x : {&out_.y, &out_.dv, &out_.dv_terms}) x->assign(in.v.size(), 0.0);
    for (auto* x : {&out_.dq, &out_.dk, &out_.dq_terms, &out_.dk_terms}) {
      x->assign(in.q.size(), 0.0);
    }
    out_.lse.assign(static_cast<size_t>(spans.begin.back() * config.num_heads), 0.0);
    for (size_t s = 0; s + 1 < spans.begin.size(); ++s) {
      for (int64_t i = spans.begin[s]; i < spans.begin[s + 1]; ++i) {
        const int64_t end = config.causal ? i + 1 : spans.begin[s + 1];
        for (int64_t h = 0; h < config.num_heads; ++h) Row(i, h, spans.begin[s], end);
      }
    }
  }
  const OracleOutput& output() const { return out_; }

 private:
  // Row i of head h sees rows [begin, end).
  void Row(int64_t i, int64_t h, int64_t begin, int64_t end) {
    const int64_t d = config_.head_dim, heads = config_.num_heads;
    const double decay = config_.log_decay.empty() ? 0 : config_.log_decay[static_cast<size_t>(h)];
    std::vector<PairWeight> pairs;
    double largest = -1e300, sum = 0;
    for (int64_t j = begin; j < end; ++j) {
      pairs.push_back(pair_(&in_.q[Index(i, h, d)], &in_.k[Index(j, h, d)], d));
      pairs.back().log += decay * static_cast<double>(i - j);
      largest = std::fmax(largest, pairs.back().log);
    }
    for (const PairWeight& p : pairs) sum += std::exp(p.log - largest);
    const double lse = largest + std::log(sum);
    out_.lse[static_cast<size_t>(i * heads + h)] = lse;
    for (PairWeight& p : pairs) p.log = std::exp(p.log - lse);  // now the normalised weight
    Values(i, h, begin, pairs);
  }

  void Values(int64_t i, int64_t h, int64_t begin, const std::vector<PairWeight>& pairs) {
    const int64_t d = config_.head_dim, dv = config_.value_dim;
    double* y = &out_.y[Index(i, h, dv)];
    const double* dy = &in_.dy[Index(i, h, dv)];
    for (size_t j = 0; j < pairs.size(); ++j) {
      const size_t at = Index(begin + static_cast<int64_t>(j), h, dv);
      for (int64_t e = 0; e < dv; ++e) {
        y[e] += pairs[j].log * in_.v[at + static_cast<size_t>(e)];
        out_.dv[at + static_cast<size_t>(e)] += pairs[j].log * dy[e];
        out_.dv_terms[at + static_cast<size_t>(e)] += pairs[j].log * std::fabs(dy[e]);
      }
    }
    double delta = 0;
    for (int64_t e = 0; e < dv; ++e) delta += dy[e] * y[e];
    for (size_t j = 0; j < pairs.size(); ++j) {
      const size_t row = Index(begin + static_cast<int64_t>(j), h, d);
      const double* v = &in_.v[Index(begin + static_cast<int64_t>(j), h, dv)];
      double g = -delta, terms = 0;
      for (int64_t e = 0; e < dv; ++e) {
        g += dy[e] * v[e];
        terms += std::fabs(dy[e] * v[e]) + std::fabs(dy[e] * y[e]);
      }
      g *= pairs[j].log;
      terms *= pairs[j].log;
      for (size_t f = 0; f < static_cast<size_t>(d); ++f) {
        out_.dq[Index(i, h, d) + f] += g * pairs[j].dq[f];
        out_.dk[row + f] += g * pairs[j].dk[f];
        out_.dq_terms[Index(i, h, d) + f] += terms * std::fabs(pairs[j].dq[f]);
        out_.dk_terms[row + f] += terms * std::fabs(pairs[j].dk[f]);
      }
    }
  }

  size_t Index(int64_t t, int64_t h, int64_t columns) const {
    return static_cast<size_t>((t * config_.num_heads + h) * columns);
  }

  const ElaConfig& config_;
  const OracleInput& in_;
  PairFunction pair_;
  OracleOutput out_;
};

}  // namespace ela::testing
