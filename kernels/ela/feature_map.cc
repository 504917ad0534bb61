#include "kernels/ela/feature_map.h"

#include <cmath>
#include <vector>

#include "kernels/check.h"

namespace ela::kernels {

template <class Real>
void FeatureMath<Real>::Fold(const StateSizes& sizes, const StateView<Real>& acc,
                             const StateView<Real>& later, Real log_decay) const {
  const Real keep = log_decay == 0 ? Real{1} : std::exp(log_decay * *later.count);
  for (int64_t f = 0; f < sizes.features; ++f) {
    acc.norm[f] = keep * acc.norm[f] + later.norm[f];
    Real* to = acc.sums + f * acc.ld;
    const Real* from = later.sums + f * later.ld;
#pragma omp simd
    for (int64_t e = 0; e < sizes.dv; ++e) to[e] = keep * to[e] + from[e];
  }
  *acc.count += *later.count;
}

template <class Real>
void PlainFeatureMap<Real>::Write(Real* w, int64_t ld, const Rows& rows, const Real*) const {
  const int64_t features = this->features(rows.d);
  for (int64_t i = 0; i < rows.n; ++i) {
    const Real* x = rows.x + i * rows.d;
    rows.side == Side::kQuery ? Phi(w + i * ld, x, rows.d) : Psi(w + i * ld, x, rows.d);
    if (!rows.scaled()) continue;
    const Real scale = rows.Scale(i);
    for (int64_t f = 0; f < features; ++f) w[i * ld + f] *= scale;
  }
}

template <class Real>
void PlainFeatureMap<Real>::AddReadGradient(Real* dx, const Real* dr, const Real*, int64_t ld,
                                            const Rows& rows, const Real*) const {
  std::vector<Real> scaled(static_cast<size_t>(this->features(rows.d)));
  for (int64_t i = 0; i < rows.n; ++i) {
    const Real* x = rows.x + i * rows.d;
    const Real scale = rows.Scale(i);
    for (size_t f = 0; f < scaled.size(); ++f) {
      scaled[f] = scale * dr[i * ld + static_cast<int64_t>(f)];
    }
    rows.side == Side::kQuery ? AddPhiGradient(dx + i * rows.d, scaled.data(), x, rows.d)
                              : AddPsiGradient(dx + i * rows.d, scaled.data(), x, rows.d);
  }
}

template class FeatureMath<float>;
template class FeatureMath<double>;
template class PlainFeatureMap<float>;
template class PlainFeatureMap<double>;

// Each in its own file, in the order of enum FeatureMap.
FeatureMapPair HadamardExpMap();
FeatureMapPair SumSquaredMap();
FeatureMapPair SubSquaredMap();
FeatureMapPair ModulatedDotMap();

const FeatureMapPair& FeatureMapOf(const ElaConfig& config) {
  static const std::vector<FeatureMapPair> maps = {HadamardExpMap(), SumSquaredMap(),
                                                   SubSquaredMap(), ModulatedDotMap()};
  if (config.custom != nullptr) return *config.custom;
  const auto index = static_cast<size_t>(config.kernel);
  ELA_CHECK(index < maps.size(), "feature map %zu", index);
  return maps[index];
}

}  // namespace ela::kernels
