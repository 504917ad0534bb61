// The paper's promises: weights are never negative and add up to one, so an output is a convex
// combination of the values that its row sees; and gradients stay bounded on the hard inputs.
#include <algorithm>

#include "tests/kernels/ela_families.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr int64_t kLength = 140;

std::vector<Problem> Problems() { return AllModes(2, 8, 8, Documents({kLength - 60, 60})); }

struct Backing {
  DType dtype;
  double rounding;  // of a sum of kLength weights
};
constexpr Backing kBackings[] = {{DType::kF64, 1e-12}, {DType::kF32, 2e-5}};

kernels::Backend BackendOf(DType dtype) {
  return dtype == DType::kF64 ? Backend::kReference : Backend::kCpu;
}

struct Seen {
  int64_t begin, end;  // rows
};
Seen SeenBy(const Problem& p, int64_t row) {
  const int64_t begin = row < kLength - 60 ? 0 : kLength - 60;
  const int64_t end = row < kLength - 60 ? kLength - 60 : kLength;
  return {begin, p.config.causal ? row + 1 : end};
}

/// Value column e is 1 at rows j with j % 8 == e, else 0: outputs are sums of weights.
void FillIndicators(const Attention& a) {
  const Tensor v = a.v();
  for (int64_t i = 0; i < v.numel(); ++i) {
    const int64_t row = i / v.row_numel(), column = i % v.dim(2);
    Set(v, i, row % v.dim(2) == column ? 1 : 0);
  }
}

TEST(ElaPromises, WeightsAreNeverNegativeAndAddUpToOne) {
  for (const auto& [dtype, rounding] : kBackings) {
    for (const Problem& p : Problems()) {
      for (const Family& family : kFamilies) {
        OpContext ctx(BackendOf(dtype));
        Attention a(dtype, p);
        a.FillNormal(1);
        FillFamily(a, family);
        FillIndicators(a);
        a.Forward(ctx);
        double least = 0, worst_sum = 0;
        for (int64_t row = 0; row < a.y().dim(0) * 2; ++row) {
          double sum = 0;
          for (int64_t e = 0; e < 8; ++e) {
            const double weight = Get(a.y(), row * 8 + e);
            least = std::min(least, weight);
            sum += weight;
          }
          worst_sum = std::max(worst_sum, std::fabs(sum - 1));
        }
        EXPECT_GE(least, -rounding) << p.Name() << ", " << family.name;
        EXPECT_LE(worst_sum, rounding) << p.Name() << ", " << family.name;
      }
    }
  }
}

TEST(ElaPromises, OutputsLieBetweenTheValuesThatAreSeen) {
  for (const auto& [dtype, rounding] : kBackings) {
    for (const Problem& p : Problems()) {
      for (const Family& family : kFamilies) {
        OpContext ctx(BackendOf(dtype));
        Attention a(dtype, p);
        a.FillNormal(1);
        FillFamily(a, family);
        a.Forward(ctx);
        double outside = 0;
        const int64_t width = a.v().row_numel();
        const std::vector<double> v = Values(a.v()), y = Values(a.y());
        for (int64_t i = 0; i < static_cast<int64_t>(y.size()); ++i) {
          const Seen seen = SeenBy(p, i / width);
          double low = 1e300, high = -1e300;
          for (int64_t j = seen.begin; j < seen.end; ++j) {
            low = std::min(low, v[static_cast<size_t>(j * width + i % width)]);
            high = std::max(high, v[static_cast<size_t>(j * width + i % width)]);
          }
          const double at = y[static_cast<size_t>(i)];
          outside = std::max(outside, std::max(low - at, at - high));
        }
        EXPECT_LE(outside, 4 * rounding) << p.Name() << ", " << family.name;
      }
    }
  }
}

// dv_j = sum_i w_ij dy_i with weights of rows that add up to one. For hadamard_exp the slopes of
// ln k are at most 1, so |dq| and the sum of all |dk| are bounded by the values alone.
TEST(ElaPromises, GradientsAreBoundedByTheValuesWhateverTheLogits) {
  for (const auto& [dtype, rounding] : kBackings) {
    for (const Problem& p : Problems()) {
      for (const Family& family : kFamilies) {
        OpContext ctx(BackendOf(dtype));
        Attention a(dtype, p);
        a.FillNormal(1);
        FillFamily(a, family);
        a.Run(ctx);
        const double rows = static_cast<double>(kLength);
        const double values = MaxAbs(a.v()), upstream = MaxAbs(a.dy());
        const double slack = 1 + 100 * rounding;
        EXPECT_TRUE(MaxAbs(a.dv()) <= slack * rows * upstream) << p.Name() << ", " << family.name;
        const double one = 2 * 8 * values * upstream * slack;
        if (p.config.kernel == FeatureMap::kHadamardExp) {
          EXPECT_TRUE(MaxAbs(a.dq()) <= one) << p.Name() << ", " << family.name;
          EXPECT_TRUE(MaxAbs(a.dk()) <= rows * one) << p.Name() << ", " << family.name;
        } else {  // |q + k| is at least sqrt(eps) where the slope is largest: 1 / sqrt(eps)
          EXPECT_TRUE(MaxAbs(a.dq()) <= 1e3 * one) << p.Name() << ", " << family.name;
          EXPECT_TRUE(MaxAbs(a.dk()) <= 1e3 * rows * one) << p.Name() << ", " << family.name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ela::kernels
