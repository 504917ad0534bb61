#include "kernels/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace ela::kernels {
namespace {

TEST(VectorMath, ExponentialIsWithinTwoUnits) {
  for (double x = -86.9; x < 88.7; x += 0.000731) {
    const double exact = std::exp(static_cast<double>(static_cast<float>(x)));
    ASSERT_LE(std::fabs(static_cast<double>(ExpF(static_cast<float>(x))) - exact),
              2 * 0x1p-23 * exact)
        << x;
  }
}

TEST(VectorMath, ExponentialIsRightAtTheEnds) {
  EXPECT_EQ(ExpF(0.0f), 1.0f);
  EXPECT_EQ(ExpF(-1000.0f), 0.0f);
  EXPECT_EQ(ExpF(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(ExpF(1000.0f), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isfinite(ExpF(88.72f)));
  EXPECT_FALSE(std::isfinite(ExpF(88.73f)));
  EXPECT_TRUE(std::isnan(ExpF(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, SineAndCosineMatchDouble) {
  for (double t = -1000; t < 1000; t += 0.01737) {
    float sine, cosine;
    SinCosTurns(t, &sine, &cosine);
    const double angle = 2 * 3.14159265358979323846 * (t - std::nearbyint(t));
    ASSERT_NEAR(sine, std::sin(angle), 2e-7) << t;
    ASSERT_NEAR(cosine, std::cos(angle), 2e-7) << t;
  }
}

TEST(VectorMath, SumsAndMaximaCoverEveryElement) {
  for (int64_t n : {1, 15, 16, 17, 63, 65}) {
    std::vector<float> x(static_cast<size_t>(n)), ones(x.size(), 1.0f), zeros(x.size());
    std::iota(x.begin(), x.end(), -20.0f);
    EXPECT_EQ(Dot(x.data(), ones.data(), n), std::accumulate(x.begin(), x.end(), 0.0f));
    EXPECT_EQ(MaxOf(x.data(), n), x.back());
    EXPECT_EQ(ExpSumOf(zeros.data(), 0.0f, n), static_cast<float>(n));
    EXPECT_EQ(ExpSum(ones.data(), zeros.data(), 0.0f, n), static_cast<float>(n));
  }
}

}  // namespace
}  // namespace ela::kernels
