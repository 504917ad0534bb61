// k(q, k) = w_q w_k (alpha |x - z|^2 + r_x + r_z + eps) with x = u q and z = t k, u and t scalars
// of each row: the form behind sum_squared (z = -k), sub_squared and modulated_dot.
//
// Expanded about the origin it cancels where x and z are close together and far from there, so a
// state is kept about a centre c, the mean of what was written, its gauge:
//   written  w [z - c, 1, alpha |z - c|^2 + r_z],   read  w [-2 alpha (x - c),
//                                                            alpha |x - c|^2 + r_x + eps, 1],
// Sums about the mean only add up what is positive: |x - z_j|^2 summed over j is n |x - c|^2 +
// sum |z_j - c|^2. Pairs within a chunk use the distance itself.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/ela/feature_map.h"

namespace ela::kernels {

inline constexpr double kKernelEps = 1e-6;  // model.md section 1

template <class Real>
class SquaredDistance : public FeatureMath<Real> {
 public:
  using Rows = FeatureRows<Real>;

  /// A row of queries or keys as a point: scale * row.
  struct Point {
    Real scale = 1;   // u or t
    Real weight = 1;  // w
    Real rest = 0;    // r
  };

  int64_t features(int64_t d) const override { return d + 2; }
  int64_t gauge_size(int64_t d) const override { return d; }

  void ChooseGauge(Real* gauge, const Rows& rows) const override {
    // Relative to the first point, so that the mean of equal ones is exactly that point.
    const Real first = At(rows, 0).scale;
    std::fill_n(gauge, rows.d, Real{0});
    for (int64_t i = 1; i < rows.n; ++i) {
      const Real scale = At(rows, i).scale;
      const Real* x = rows.x + i * rows.d;
#pragma omp simd
      for (int64_t f = 0; f < rows.d; ++f) gauge[f] += scale * x[f] - first * rows.x[f];
    }
    for (int64_t f = 0; f < rows.d; ++f) {
      gauge[f] = first * rows.x[f] + gauge[f] / static_cast<Real>(rows.n);
    }
  }

  void Write(Real* w, int64_t ld, const Rows& rows, const Real* gauge) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Point p = At(rows, i);
      Real* row = w + i * ld;
      row[rows.d] = p.weight;
      row[rows.d + 1] = p.weight * (alpha_ * Offset(row, p, p.weight, rows, i, gauge) + p.rest);
    }
  }

  void Read(Real* r, int64_t ld, const Rows& rows, const Real* gauge) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Point p = At(rows, i);
      Real* row = r + i * ld;
      const Real square = Offset(row, p, -2 * alpha_ * p.weight, rows, i, gauge);
      row[rows.d] = p.weight * (alpha_ * square + p.rest + Real(kKernelEps));
      row[rows.d + 1] = p.weight;
    }
  }

  void AddReadGradient(Real* dx, const Real* dr, const Real* r, int64_t ld, const Rows& rows,
                       const Real* gauge) const override {
    for (int64_t i = 0; i < rows.n; ++i) {
      const Point p = At(rows, i);
      const Real *row = r + i * ld, *drow = dr + i * ld;
      // The read offset is linear (x - c), so that of alpha w |x - c|^2 is -row.
      const Real linear = -2 * alpha_ * p.weight;
      AddPointGradient(dx + i * rows.d, p, rows, i, drow, row, linear, -drow[rows.d]);
    }
  }

  void Fold(const StateSizes& sizes, const StateView<Real>& acc, const StateView<Real>& later,
            Real log_decay) const override;

  bool Weights(Real* weights, int64_t ld, const Rows& readers, const Rows& writers) const override;

 protected:
  SquaredDistance(Real alpha, Real key_sign) : alpha_(alpha), key_sign_(key_sign) {}

  /// The point of row i, its scales in the weight.
  virtual Point At(const Rows& rows, int64_t i) const {
    Point p;
    p.scale = rows.side == Side::kKey ? key_sign_ : Real{1};
    if (rows.scaled()) p.weight = rows.Scale(i);
    return p;
  }

  /// dx [d] += scale * (linear dr + square r): the gradient of the point, where its scale is a
  /// constant.
  virtual void AddPointGradient(Real* dx, const Point& p, const Rows& rows, int64_t i,
                                const Real* dr, const Real* r, Real linear, Real square) const {
#pragma omp simd
    for (int64_t f = 0; f < rows.d; ++f) dx[f] += p.scale * (linear * dr[f] + square * r[f]);
  }

  Real alpha_, key_sign_;

 private:
  /// out [d] = factor (point - gauge); returns |point - gauge|^2.
  static Real Offset(Real* out, const Point& p, Real factor, const Rows& rows, int64_t i,
                     const Real* gauge) {
    const Real* x = rows.x + i * rows.d;
    Real lanes[8] = {};
    for (int64_t f = 0; f < rows.d; ++f) {
      const Real offset = p.scale * x[f] - gauge[f];
      out[f] = factor * offset;
      lanes[f % 8] += offset * offset;
    }
    Real square = 0;
    for (Real lane : lanes) square += lane;
    return square;
  }
};

/// Tokens of a state as they weigh in its centre: all alike, or as far as decay has left of them.
template <class Real>
Real EffectiveCount(Real count, Real log_decay) {
  if (log_decay == 0) return count;
  return std::expm1(log_decay * count) / std::expm1(log_decay);
}

// Both sides move to the common centre, s further than theirs:
//   z - c - s,   alpha |z - c - s|^2 = alpha |z - c|^2 - 2 alpha s (z - c) + alpha |s|^2.
template <class Real>
void SquaredDistance<Real>::Fold(const StateSizes& sizes, const StateView<Real>& acc,
                                 const StateView<Real>& later, Real log_decay) const {
  const int64_t d = sizes.d;
  const Real keep = log_decay == 0 ? Real{1} : std::exp(log_decay * *later.count);
  const Real mine = keep * EffectiveCount(*acc.count, log_decay);
  const Real theirs = EffectiveCount(*later.count, log_decay);
  const Real part = theirs / (mine + theirs);
  const auto centre = [&](int64_t f) {
    return acc.gauge[f] + part * (later.gauge[f] - acc.gauge[f]);
  };
  Real acc_square = 0, later_square = 0;
  for (int64_t f = 0; f < d; ++f) {
    const Real c = centre(f);
    acc_square += (c - acc.gauge[f]) * (c - acc.gauge[f]);
    later_square += (c - later.gauge[f]) * (c - later.gauge[f]);
  }
  // One row of sums and its norm, last first: the row of squares takes the others as they were.
  const auto add = [&](int64_t f, int64_t base, Real acc_factor, Real later_factor) {
    acc.norm[f] += acc_factor * acc.norm[base] + later_factor * later.norm[base];
    Real* to = acc.sums + f * acc.ld;
    const Real* acc_base = acc.sums + base * acc.ld;
    const Real* later_base = later.sums + base * later.ld;
#pragma omp simd
    for (int64_t e = 0; e < sizes.dv; ++e) {
      to[e] += acc_factor * acc_base[e] + later_factor * later_base[e];
    }
  };
  const auto sum = [&](int64_t f) {
    acc.norm[f] = keep * acc.norm[f] + later.norm[f];
    Real* to = acc.sums + f * acc.ld;
    const Real* from = later.sums + f * later.ld;
#pragma omp simd
    for (int64_t e = 0; e < sizes.dv; ++e) to[e] = keep * to[e] + from[e];
  };
  const bool moves = acc_square != 0 || later_square != 0;
  sum(d + 1);
  if (moves) add(d + 1, d, keep * alpha_ * acc_square, alpha_ * later_square);
  for (int64_t f = 0; f < d; ++f) {
    const Real c = centre(f), acc_shift = c - acc.gauge[f], later_shift = c - later.gauge[f];
    if (moves) add(d + 1, f, -2 * alpha_ * keep * acc_shift, -2 * alpha_ * later_shift);
    sum(f);
    if (moves) add(f, d, -keep * acc_shift, -later_shift);
    acc.gauge[f] = c;
  }
  sum(d);
  *acc.count += *later.count;
}

template <class Real>
bool SquaredDistance<Real>::Weights(Real* weights, int64_t ld, const Rows& readers,
                                    const Rows& writers) const {
  for (int64_t i = 0; i < readers.n; ++i) {
    const Point a = At(readers, i);
    const Real* x = readers.x + i * readers.d;
    for (int64_t j = 0; j < writers.n; ++j) {
      const Point b = At(writers, j);
      const Real* z = writers.x + j * writers.d;
      Real lanes[8] = {};
      for (int64_t f = 0; f < readers.d; ++f) {
        const Real offset = a.scale * x[f] - b.scale * z[f];
        lanes[f % 8] += offset * offset;
      }
      Real square = 0;
      for (Real lane : lanes) square += lane;
      weights[i * ld + j] =
          a.weight * b.weight * (alpha_ * square + a.rest + b.rest + Real(kKernelEps));
    }
  }
  return true;
}

}  // namespace ela::kernels
