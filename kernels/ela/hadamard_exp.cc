// k(q, k) = sum_d e^(q_d + k_d). The gauge is a maximum per feature in units of ln 2, rounded up to
// whole ones, so that moving a state to another gauge multiplies by powers of two and is exact:
// state f holds sum_j e^(k_jf - gauge_f ln 2) [v_j, 1].
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/ela/feature_map.h"
#include "kernels/vector_math.h"

namespace ela::kernels {
namespace {

// ln 2 in two parts; the first has 9 bits, so that its product with a gauge is exact.
constexpr double kLn2High = 0.693359375, kLn2Low = -2.12194440054690583e-4;
constexpr double kLog2E = 1.44269504088896341;
// Growth of a chunk's keys beyond which e^-growth, times what is summed, could be lost in float.
constexpr double kMaxGrowth = 60;

inline float Exp(float x) { return ExpF(x); }
inline double Exp(double x) { return std::exp(x); }

/// 2^n for whole n <= 127; 0 below -126.
inline float Pow2(float n) {
  n = n < -127.0f ? -127.0f : n;
  const uint32_t field = std::bit_cast<uint32_t>(n + 12582912.0f) - 0x4B400000u + 127u;
  return std::bit_cast<float>((field & 0xffu) << 23);
}
inline double Pow2(double n) { return std::exp2(n); }

/// x + scale + gauge ln 2 to the precision of the result, whatever the parts' sizes are: the error
/// of the first sum is carried, the second sum is exact where it cancels.
template <class Real>
inline Real Exponent(Real x, Real scale, Real gauge) {
  const Real sum = x + scale;
  const Real part = sum - x;
  const Real error = (x - (sum - part)) + (scale - part);
  return (sum + gauge * Real(kLn2High)) + (error + gauge * Real(kLn2Low));
}

template <class Real>
inline Real GaugeLog(Real gauge) {
  return gauge * Real(kLn2High) + gauge * Real(kLn2Low);
}

template <class Real>
class HadamardExp final : public FeatureMath<Real> {
 public:
  using Rows = FeatureRows<Real>;
  int64_t features(int64_t d) const override { return d; }
  int64_t gauge_size(int64_t d) const override { return d; }

  void ChooseGauge(Real* gauge, const Rows& rows) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Real* x = rows.x + i * rows.d;
      const Real scale = rows.log_scale == nullptr ? Real{0} : rows.log_scale[i];
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) {
        const Real at = x[f] + scale;
        gauge[f] = i == 0 || !(at <= gauge[f]) ? at : gauge[f];
      }
    }
    for (int64_t f = 0; f < rows.d; ++f) gauge[f] = std::ceil(gauge[f] * Real(kLog2E));
  }

  void Write(Real* w, int64_t ld, const Rows& rows, const Real* gauge) const override {
    Features(w, ld, rows, gauge, Real{-1});
  }
  void Read(Real* r, int64_t ld, const Rows& rows, const Real* gauge) const override {
    Features(r, ld, rows, gauge, Real{1});
  }

  // Read once at the larger gauge: the others differ by powers of two.
  void ReadTwo(Real* r_a, Real* r_b, int64_t ld, const Rows& rows, const Real* gauge_a,
               const Real* gauge_b) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Real* x = rows.x + i * rows.d;
      const Real scale = rows.log_scale == nullptr ? Real{0} : rows.log_scale[i];
      Real *a = r_a + i * ld, *b = r_b + i * ld;
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) {
        const Real larger = gauge_a[f] > gauge_b[f] ? gauge_a[f] : gauge_b[f];
        const Real e = Exp(Exponent(x[f], scale, larger));
        a[f] = e * Pow2(gauge_a[f] - larger);
        b[f] = e * Pow2(gauge_b[f] - larger);
      }
    }
  }

  void AddReadGradient(Real* dx, const Real* dr, const Real* r, int64_t ld, const Rows& rows,
                       const Real*) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) dx[i * rows.d + f] += r[i * ld + f] * dr[i * ld + f];
    }
  }

  void ReadScale(Real* log_scale, const Rows& queries, const Real* gauge_a,
                 const Real* gauge_b) const override {
    for (int64_t i = 0; i < queries.n; ++i) {
      const Real* x = queries.x + i * queries.d;
      Real largest = -std::numeric_limits<Real>::max();
      for (int64_t f = 0; f < queries.d; ++f) {
        const Real gauge = gauge_b != nullptr && gauge_b[f] > gauge_a[f] ? gauge_b[f] : gauge_a[f];
        const Real at = Exponent(x[f], Real{0}, gauge);
        largest = !(at <= largest) ? at : largest;
      }
      log_scale[i] = -largest;
    }
  }

  void Fold(const StateSizes& sizes, const StateView<Real>& acc, const StateView<Real>& later,
            Real log_decay) const override {
    const Real shift = log_decay == 0 ? Real{0} : log_decay * *later.count;
    for (int64_t f = 0; f < sizes.features; ++f) {
      const Real faded = shift == 0 ? acc.gauge[f] : std::ceil(acc.gauge[f] + shift * Real(kLog2E));
      const Real gauge = faded > later.gauge[f] ? faded : later.gauge[f];
      const Real old = shift == 0 ? Pow2(acc.gauge[f] - gauge)
                                  : Exp(Exponent(shift, Real{0}, acc.gauge[f] - gauge));
      const Real fresh = Pow2(later.gauge[f] - gauge);
      acc.gauge[f] = gauge;
      acc.norm[f] = old * acc.norm[f] + fresh * later.norm[f];
      Real* to = acc.sums + f * acc.ld;
      const Real* from = later.sums + f * later.ld;
#pragma omp simd
      for (int64_t e = 0; e < sizes.dv; ++e) to[e] = old * to[e] + fresh * from[e];
    }
    *acc.count += *later.count;
  }

  bool GrowsTooMuch(const Rows& keys, const Real* before, Real log_decay) const override {
    const Real limit = Real(kMaxGrowth) + log_decay * static_cast<Real>(keys.n);
    Real growth = 0;
    for (int64_t i = 1; i < keys.n; ++i) {
      const Real* x = keys.x + i * keys.d;
#pragma omp simd reduction(max : growth)
      for (int64_t f = 0; f < keys.d; ++f) {
        const Real seen = before == nullptr ? keys.x[f] : GaugeLog(before[f]);
        const Real base = keys.x[f] > seen ? keys.x[f] : seen;
        growth = x[f] - base > growth ? x[f] - base : growth;
      }
    }
    return growth > limit;
  }

  bool ReadsTooLarge(const Rows& readers, const Real* gauge) const override {
    Real largest = 0;
    for (int64_t i = 0; i < readers.n; ++i) {
      const Real* x = readers.x + i * readers.d;
      const Real scale = readers.log_scale == nullptr ? Real{0} : readers.log_scale[i];
#pragma omp simd reduction(max : largest)
      for (int64_t f = 0; f < readers.d; ++f) {
        const Real at = (x[f] + scale) + GaugeLog(gauge[f]);
        largest = at > largest ? at : largest;
      }
    }
    return largest > Real(kMaxGrowth);
  }

 private:
  void Features(Real* out, int64_t ld, const Rows& rows, const Real* gauge, Real sign) const {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Real* x = rows.x + i * rows.d;
      const Real scale = rows.log_scale == nullptr ? Real{0} : rows.log_scale[i];
      Real* row = out + i * ld;
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) row[f] = Exp(Exponent(x[f], scale, sign * gauge[f]));
    }
  }
};

const HadamardExp<float> kFloat;
const HadamardExp<double> kDouble;

}  // namespace

FeatureMapPair HadamardExpMap() { return {"hadamard_exp", &kFloat, &kDouble}; }

}  // namespace ela::kernels
