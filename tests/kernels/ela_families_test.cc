// On the hard input families everything is finite, and right.
#include "tests/kernels/ela_families.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

double LargestOf(const std::vector<double>& x) {
  double largest = 0;
  for (double at : x) largest = std::fmax(largest, std::fabs(at));
  return largest;
}

/// The largest error of `actual`, relative to the largest sum of absolute terms.
double Error(const Tensor& actual, const std::vector<double>& expected, double terms) {
  return RelativeError(actual, expected, terms) *
         (LargestOf(expected) > terms ? LargestOf(expected) / terms : 1);
}

struct Errors {
  double forward, backward;
};

Errors ErrorsOf(DType dtype, const Problem& p, const Family& family) {
  OpContext ctx(dtype == DType::kF64 ? Backend::kReference : Backend::kCpu);
  Attention a(dtype, p);
  a.FillNormal(1);
  FillFamily(a, family);
  a.Run(ctx);
  const OracleOutput o = a.Oracle();
  return {Error(a.y(), o.y, MaxAbs(a.v())),
          std::fmax(std::fmax(Error(a.dq(), o.dq, LargestOf(o.dq_terms)),
                              Error(a.dk(), o.dk, LargestOf(o.dk_terms))),
                    Error(a.dv(), o.dv, LargestOf(o.dv_terms)))};
}

std::vector<Problem> Problems(int64_t length) {
  return AllModes(2, 16, 8, Documents({length - 60, 60}));
}

TEST(ElaFamilies, ReferenceIsRight) {
  for (const Problem& p : Problems(160)) {
    for (const Family& family : kFamilies) {
      const auto [forward, backward] = ErrorsOf(DType::kF64, p, family);
      EXPECT_TRUE(forward <= 1e-9 && backward <= 1e-9)
          << p.Name() << ", " << family.name << ": " << forward << ", " << backward;
    }
  }
}

/// Log-denominators of up to 2000 are rounded to float, which makes every weight off by up to 6e-5;
/// those of elements of 2^20, of which only hadamard_exp's are as large, by up to 2^-4.
double BackwardTolerance(const Problem& p, const Family& family) {
  return family.huge && p.config.kernel == FeatureMap::kHadamardExp ? std::expm1(0x1p-4) : 6e-5;
}

// Forward: a few roundings of 6e-8, whatever the numbers are.
TEST(ElaFamilies, CpuIsRight) {
  for (const Problem& p : Problems(160)) {
    for (const Family& family : kFamilies) {
      const auto [forward, backward] = ErrorsOf(DType::kF32, p, family);
      EXPECT_TRUE(forward <= 2e-6 && backward <= BackwardTolerance(p, family))
          << p.Name() << ", " << family.name << ": " << forward << ", " << backward;
    }
  }
}

TEST(ElaFamilies, ElementsBeyond2To20CountAs2To20InQueriesToo) {
  for (const Problem& p : Problems(160)) {
    if (p.config.kernel != FeatureMap::kHadamardExp) continue;
    for (const auto& [dtype, tolerance] : {std::pair(DType::kF64, 1e-9), {DType::kF32, 6e-5}}) {
      const auto [forward, backward] = ErrorsOf(dtype, p, kOneFeatureOpposite);
      EXPECT_TRUE(forward <= tolerance && backward <= tolerance)
          << p.Name() << ": " << forward << ", " << backward;
    }
  }
}

TEST(ElaFamilies, ChunksWhoseKeysGrowTooMuchAreCountedOnce) {
  OpContext ctx(Backend::kCpu);
  int64_t taken = 0;
  const auto take = [&] {
    taken = 0;
    ElaTakeSlowPathChunks(ctx, Tensor::Of(&taken, {1}));
    return taken;
  };
  for (const Family& family : kFamilies) {
    const std::string name = family.name;
    if (name != "N(0, 1)" && name != "keys jump") continue;
    Attention a(DType::kF32, Problems(160).front());
    a.FillNormal(1);
    FillFamily(a, family);
    a.Run(ctx);
    EXPECT_EQ(take() > 0, name == "keys jump") << name;
    EXPECT_EQ(take(), 0) << name;
  }
}

}  // namespace
}  // namespace ela::kernels
