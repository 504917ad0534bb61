#include "trainer/inference/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ela::trainer {
namespace {

const std::vector<float> kLogits = {1.f, 3.f, 2.f, 3.f, -5.f};

int32_t Sample(const SamplerConfig& config, uint64_t position, uint64_t sample = 0) {
  return SampleToken(kLogits.data(), static_cast<int64_t>(kLogits.size()), config, sample,
                     position);
}

std::vector<double> Shares(const SamplerConfig& config, int draws) {
  std::vector<double> shares(kLogits.size());
  for (int i = 0; i < draws; ++i) {
    shares[static_cast<size_t>(Sample(config, static_cast<uint64_t>(i)))] += 1.0 / draws;
  }
  return shares;
}

TEST(Sampler, TemperatureZeroTakesTheLikeliestWithTheLowestId) {
  EXPECT_EQ(Sample({.temperature = 0}, 0), 1);
}

TEST(Sampler, DrawsFollowTheSoftmax) {
  const std::vector<double> shares = Shares({.temperature = 0.7}, 40000);
  double total = 0;
  for (float logit : kLogits) total += std::exp(logit / 0.7);
  for (size_t i = 0; i < shares.size(); ++i) {
    EXPECT_NEAR(shares[i], std::exp(kLogits[i] / 0.7) / total, 0.01) << i;
  }
}

TEST(Sampler, TopKKeepsTheLikeliest) {
  const std::vector<double> shares = Shares({.temperature = 2, .top_k = 3}, 5000);
  EXPECT_EQ(shares[0] + shares[4], 0);
  EXPECT_GT(shares[2], 0);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  // The two of logit 3 hold 0.79 of the mass.
  const std::vector<double> shares = Shares({.top_p = 0.75}, 5000);
  EXPECT_EQ(shares[0] + shares[2] + shares[4], 0);
  EXPECT_GT(Shares({.top_p = 0.85}, 5000)[2], 0);
}

TEST(Sampler, IsAFunctionOfSeedSampleAndPosition) {
  const SamplerConfig config = {.seed = 7};
  bool position_matters = false, sample_matters = false, seed_matters = false;
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(Sample(config, i, 3), Sample(config, i, 3));
    position_matters |= Sample(config, i) != Sample(config, i + 1);
    sample_matters |= Sample(config, i, 0) != Sample(config, i, 1);
    seed_matters |= Sample(config, i) != Sample({.seed = 8}, i);
  }
  EXPECT_TRUE(position_matters && sample_matters && seed_matters);
}

}  // namespace
}  // namespace ela::trainer
