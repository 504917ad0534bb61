// k(q, k) = sum_d e^(q_d + k_d). The gauge is a maximum per feature in units of ln 2, rounded up to
// whole ones: state f holds sum_j e^(k_jf - gauge_f ln 2) [v_j, 1]. Features are made of e^x
// itself, as a fraction and a power of two, so that another gauge or scale multiplies them, and all
// that is summed of them, by a power of two: exactly, as long as nothing underflows.
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/ela/feature_map.h"
#include "kernels/vector_math.h"

namespace ela::kernels {
namespace {

// ln 2 in two parts; the first has 9 bits, so that its product with a gauge is exact.
constexpr double kLn2High = 0.693359375, kLn2Low = -2.12194440054690583e-4;
// The first part is this sum, whose products with whole numbers below 2^21 are exact too.
constexpr double kLn2Parts[] = {0.75, -7.0 / 128, -1.0 / 512};
constexpr double kLog2E = 1.44269504088896341;
// Growth of a chunk's keys beyond which e^-growth, times what is summed, could be lost in float.
constexpr double kMaxGrowth = 60;

inline float Exp(float x) { return ExpF(x); }
inline double Exp(double x) { return std::exp(x); }
inline float ExpNearZero(float r) { return ExpNearZeroF(r); }
inline double ExpNearZero(double r) { return std::exp(r); }

/// The whole number next to |x| < 2^22, by pushing the fraction out of the mantissa.
inline float Round(float x) { return (x + 12582912.0f) - 12582912.0f; }
inline double Round(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

/// 2^n for whole n; 0 below -126, infinity above 127.
inline float Pow2(float n) {
  n = n < -127.0f ? -127.0f : n;
  n = n > 128.0f ? 128.0f : n;
  const uint32_t field = std::bit_cast<uint32_t>(n + 12582912.0f) - 0x4B400000u + 127u;
  return std::bit_cast<float>((field & 0xffu) << 23);
}
inline double Pow2(double n) { return std::exp2(n); }

/// e^(x + scale) = fraction 2^power, fraction between sqrt(1/2) and sqrt(2).
template <class Real>
struct Power {
  Real fraction, power;
  Power(Real x, Real scale) {
    const Real sum = x + scale, part = sum - x;
    const Real error = (x - (sum - part)) + (scale - part);
    power = Round(sum * Real(kLog2E));
    Real rest = sum - power * Real(kLn2Parts[0]);
    rest -= power * Real(kLn2Parts[1]);
    rest -= power * Real(kLn2Parts[2]);
    fraction = ExpNearZero(rest + (error - power * Real(kLn2Low)));
  }
};

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

  void ReadTwo(Real* r_a, Real* r_b, int64_t ld, const Rows& rows, const Real* gauge_a,
               const Real* gauge_b) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Real* x = rows.x + i * rows.d;
      const Real scale = rows.log_scale == nullptr ? Real{0} : rows.log_scale[i];
      const Real scale2 = rows.log2_scale == nullptr ? Real{0} : rows.log2_scale[i];
      Real *a = r_a + i * ld, *b = r_b + i * ld;
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) {
        const Power<Real> e(x[f], scale);
        a[f] = e.fraction * Pow2(e.power + scale2 + gauge_a[f]);
        b[f] = e.fraction * Pow2(e.power + scale2 + gauge_b[f]);
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

  void ReadScale(Real* log2_scale, const Rows& queries, const Real* gauge_a,
                 const Real* gauge_b) const override {
    for (int64_t i = 0; i < queries.n; ++i) {
      const Real* x = queries.x + i * queries.d;
      Real largest = -std::numeric_limits<Real>::max();
      for (int64_t f = 0; f < queries.d; ++f) {
        const Real gauge = gauge_b != nullptr && gauge_b[f] > gauge_a[f] ? gauge_b[f] : gauge_a[f];
        const Real at = Round(x[f] * Real(kLog2E)) + gauge;
        largest = !(at <= largest) ? at : largest;
      }
      log2_scale[i] = -largest;
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

  int64_t RowsOfOneGauge(const Rows& keys, const Real* before, Real log_decay) const override {
    const Real limit = Real(kMaxGrowth) + log_decay * static_cast<Real>(keys.n);
    for (int64_t i = 1; i < keys.n; ++i) {
      const Real* x = keys.x + i * keys.d;
      Real growth = 0;
#pragma omp simd reduction(max : growth)
      for (int64_t f = 0; f < keys.d; ++f) {
        const Real seen = before == nullptr ? keys.x[f] : GaugeLog(before[f]);
        const Real base = keys.x[f] > seen ? keys.x[f] : seen;
        growth = x[f] - base > growth ? x[f] - base : growth;
      }
      if (growth > limit) return i;
    }
    return keys.n;
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
      const Real scale2 = rows.log2_scale == nullptr ? Real{0} : rows.log2_scale[i];
      Real* row = out + i * ld;
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) {
        const Power<Real> e(x[f], scale);
        row[f] = e.fraction * Pow2(e.power + scale2 + sign * gauge[f]);
      }
    }
  }
};

const HadamardExp<float> kFloat;
const HadamardExp<double> kDouble;

}  // namespace

FeatureMapPair HadamardExpMap() { return {"hadamard_exp", &kFloat, &kDouble}; }

}  // namespace ela::kernels
