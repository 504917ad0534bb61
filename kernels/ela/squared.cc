// sum_squared: |q + k|^2 + eps, and sub_squared: |q - k|^2 + eps.
#include "kernels/ela/squared_distance.h"

namespace ela::kernels {
namespace {

template <class Real>
class Squared final : public SquaredDistance<Real> {
 public:
  explicit Squared(Real key_sign) : SquaredDistance<Real>(1, key_sign) {}
};

const Squared<float> kSumFloat(-1), kSubFloat(1);
const Squared<double> kSumDouble(-1), kSubDouble(1);

}  // namespace

FeatureMapPair SumSquaredMap() { return {"sum_squared", &kSumFloat, &kSumDouble}; }
FeatureMapPair SubSquaredMap() { return {"sub_squared", &kSubFloat, &kSubDouble}; }

}  // namespace ela::kernels
