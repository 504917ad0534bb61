#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "data/sampler/mixture.h"
#include "data/sampler/permutation.h"

namespace ela::data {
namespace {

TEST(Permutation, IsABijectionForEverySize) {
  for (int64_t n : {1, 2, 3, 4, 5, 15, 16, 17, 1000, 1024, 4097}) {
    const Permutation permutation(n, 42);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < n; ++i) seen.insert(permutation(i));
    EXPECT_EQ(static_cast<int64_t>(seen.size()), n);
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), n - 1);
  }
}

TEST(Permutation, StaysInRangeForHugeSizes) {
  for (const int64_t n : {(int64_t{1} << 40) + 1, INT64_MAX}) {
    const Permutation permutation(n, 3);
    for (int64_t i = 0; i < 100; ++i) {
      const int64_t image = permutation(n - 1 - i);
      EXPECT_TRUE(image >= 0 && image < n);
    }
  }
}

TEST(Permutation, DependsOnTheKeyAndLooksUniform) {
  constexpr int64_t kSize = 4096;
  const Permutation a(kSize, 1), b(kSize, 2);
  int64_t same = 0, lower_half = 0;
  for (int64_t i = 0; i < kSize / 2; ++i) {
    same += a(i) == b(i);
    lower_half += a(i) < kSize / 2;
  }
  EXPECT_LT(same, 20);                                  // 0.5 expected
  EXPECT_LT(std::abs(lower_half - kSize / 4), 6 * 16);  // hypergeometric, standard deviation 16
}

void ExpectExactShares(const std::vector<double>& weights) {
  const Mixture mixture(weights, 5);
  const auto& shares = mixture.shares();
  std::vector<int64_t> drawn(weights.size(), 0);
  std::vector<std::set<int64_t>> ordinals(weights.size());
  for (int64_t block = 0; block < Mixture::kBlock; ++block) {
    std::vector<int64_t> in_block(weights.size(), 0);
    for (int64_t i = 0; i < Mixture::kBlock; ++i) {
      const auto draw = mixture.At(block * Mixture::kBlock + i);
      ++in_block[draw.source];
      if (block < 4) ordinals[draw.source].insert(draw.ordinal);
    }
    for (size_t s = 0; s < weights.size(); ++s) {
      drawn[s] += in_block[s];
      ASSERT_GE(in_block[s], shares[s] / Mixture::kBlock);
      ASSERT_LE(in_block[s], (shares[s] + Mixture::kBlock - 1) / Mixture::kBlock);
      if (block == 3) {
        ASSERT_EQ(static_cast<int64_t>(ordinals[s].size()), drawn[s]);
        ASSERT_TRUE(drawn[s] == 0 || *ordinals[s].rbegin() == drawn[s] - 1);
      }
    }
  }
  EXPECT_EQ(drawn, shares);
}

TEST(Mixture, SharesAreExactInEveryBlockAndOverAllOfThem) {
  ExpectExactShares({1, 1, 1});
  ExpectExactShares({0.7, 0, 0.2999, 1e-4, 1e-12});
}

TEST(Mixture, SharesFollowTheWeightsWhateverTheirScale) {
  EXPECT_EQ(Mixture({3, 1}, 0).shares(), (std::vector<int64_t>{786432, 262144}));
  EXPECT_EQ(Mixture({3e300, 1e300}, 0).shares(), Mixture({3e-300, 1e-300}, 0).shares());
  EXPECT_EQ(Mixture({0, 2}, 0).shares(), (std::vector<int64_t>{0, Mixture::kUnits}));
}

TEST(Mixture, OrdinalsGoOnFarIntoARun) {
  const Mixture mixture({5, 3, 2}, 9);
  const int64_t first = (int64_t{1} << 45) + 1024 * 77;
  std::set<std::pair<int, int64_t>> draws;
  std::vector<int64_t> low(3, INT64_MAX), high(3, -1), count(3, 0);
  for (int64_t k = first; k < first + 5 * Mixture::kBlock; ++k) {
    const auto draw = mixture.At(k);
    ++count[draw.source];
    low[draw.source] = std::min(low[draw.source], draw.ordinal);
    high[draw.source] = std::max(high[draw.source], draw.ordinal);
    EXPECT_TRUE(draws.insert({draw.source, draw.ordinal}).second);
  }
  for (int s = 0; s < 3; ++s) EXPECT_EQ(high[s] - low[s] + 1, count[s]);
}

TEST(Mixture, SourcesAlternateInsideABlock) {
  const Mixture mixture({1, 1}, 1);
  int changes = 0;
  for (int64_t k = 1; k < Mixture::kBlock; ++k)
    changes += mixture.At(k).source != mixture.At(k - 1).source;
  EXPECT_GT(changes, 400);  // 512 expected, standard deviation 16
}

}  // namespace
}  // namespace ela::data
