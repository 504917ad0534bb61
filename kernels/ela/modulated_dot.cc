// k(q, k) = (q^ . k^ + 1 + eps) (|q|^2 + 1) (|k|^2 + 1), x^ = x / max(|x|, 1e-12): the paper's
// example of a custom kernel. For unit vectors q^ . k^ + 1 = |q^ + k^|^2 / 2, which unlike the
// product stays exact where they are opposite; (1 - |x^|^2) / 2 is left over for rows that are too
// short to be made unit vectors.
#include "kernels/ela/squared_distance.h"

namespace ela::kernels {
namespace {

constexpr double kShortest = 1e-12;

template <class Real>
class ModulatedDot final : public SquaredDistance<Real> {
 public:
  using Base = SquaredDistance<Real>;
  using typename Base::Point;
  using typename Base::Rows;
  ModulatedDot() : Base(Real(0.5), -1) {}

  void ReadScale(Real* log2_scale, const Rows& queries, const Real*, const Real*) const override {
    for (int64_t i = 0; i < queries.n; ++i) {
      log2_scale[i] = -std::round(std::log2(SquareOf(queries, i) + 1));
    }
  }

 protected:
  static Real SquareOf(const Rows& rows, int64_t i) {
    const Real* x = rows.x + i * rows.d;
    Real lanes[8] = {};
    for (int64_t f = 0; f < rows.d; ++f) lanes[f % 8] += x[f] * x[f];
    Real square = 0;
    for (Real lane : lanes) square += lane;
    return square;
  }

  Point At(const Rows& rows, int64_t i) const override {
    Point p = Base::At(rows, i);
    const Real square = SquareOf(rows, i);
    p.weight *= square + 1;
    if (square >= Real(kShortest * kShortest)) {
      p.scale /= std::sqrt(square);
    } else {
      p.scale /= Real(kShortest);
      p.rest = (1 - square * p.scale * p.scale) / 2;
    }
    return p;
  }

  // dx = scale (g - x^ (x^ . g)) for g the gradient of the point x^, and for keys that of their
  // weight: 2 k times sum(dr * r) / weight.
  void AddPointGradient(Real* dx, const Point& p, const Rows& rows, int64_t i, const Real* dr,
                        const Real* r, Real linear, Real square) const override {
    const Real* x = rows.x + i * rows.d;
    Real along = 0, weight = dr[rows.d] * r[rows.d] + dr[rows.d + 1] * r[rows.d + 1];
    for (int64_t f = 0; f < rows.d; ++f) {
      along += p.scale * x[f] * (linear * dr[f] + square * r[f]);
      weight += dr[f] * r[f];
    }
    if (rows.side == Side::kQuery) weight = 0;  // scales the whole row
    weight *= 2 / (SquareOf(rows, i) + 1);
    if (p.rest != 0) along = p.weight * dr[rows.d];  // -x^ of the rest instead
#pragma omp simd
    for (int64_t f = 0; f < rows.d; ++f) {
      dx[f] += p.scale * (linear * dr[f] + square * r[f] - along * p.scale * x[f]) + weight * x[f];
    }
  }
};

const ModulatedDot<float> kFloat;
const ModulatedDot<double> kDouble;

}  // namespace

FeatureMapPair ModulatedDotMap() { return {"modulated_dot", &kFloat, &kDouble}; }

}  // namespace ela::kernels
