#include "trainer/optim/initial_values.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace ela::trainer {
namespace {

constexpr int64_t kLayers = 4;

job::ParameterInfo Matrix(const std::string& name, int64_t rows, int64_t columns) {
  return {name, {rows, columns}, false, true};
}

std::vector<float> ValuesOf(const job::ParameterInfo& parameter, int64_t begin, int64_t end,
                            uint64_t seed = 1) {
  std::vector<float> values(static_cast<size_t>(end - begin));
  InitialValues(parameter, kLayers, seed, begin, end, values.data());
  return values;
}

struct Moments {
  double mean = 0, deviation = 0, skewness = 0, kurtosis = 0;
};

template <class T>
Moments MomentsOf(const std::vector<T>& values) {
  const double n = static_cast<double>(values.size());
  Moments m;
  for (const T x : values) m.mean += static_cast<double>(x) / n;
  double second = 0, third = 0, fourth = 0;
  for (const T x : values) {
    const double d = static_cast<double>(x) - m.mean;
    second += d * d / n;
    third += d * d * d / n;
    fourth += d * d * d * d / n;
  }
  m.deviation = std::sqrt(second);
  m.skewness = third / (second * m.deviation);
  m.kurtosis = fourth / (second * second);
  return m;
}

TEST(InitialValues, AnyIntervalHasTheNumbersOfTheWhole) {
  const job::ParameterInfo q = Matrix("layers.0.attn.q.weight", 37, 11);
  const std::vector<float> whole = ValuesOf(q, 0, q.numel());
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1},
                                   {1, 2},
                                   {1, 8},
                                   {6, 6},
                                   {7, 407},
                                   {200, 333},
                                   {406, 407}}) {
    const std::vector<float> part = ValuesOf(q, begin, end);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + begin)) << begin;
  }
}

TEST(InitialValues, AreStandardNormalNumbers) {
  std::vector<double> values;
  for (uint64_t i = 0; i < 400000; ++i) values.push_back(CounterNormal(7, 11, i));
  const Moments m = MomentsOf(values);
  // Five deviations of each moment's own scatter: 1, 0.7, 2.4 and 4.9 over sqrt(n).
  const double root = std::sqrt(400000.0);
  EXPECT_NEAR(m.mean, 0, 5 / root);
  EXPECT_NEAR(m.deviation, 1, 3.6 / root);
  EXPECT_NEAR(m.skewness, 0, 12.3 / root);
  EXPECT_NEAR(m.kurtosis, 3, 24.5 / root);
}

TEST(InitialValues, FillTheTailsOfTheNormal) {
  int64_t beyond_2 = 0, beyond_4 = 0;
  for (uint64_t i = 0; i < 1000000; ++i) {
    const double x = std::fabs(CounterNormal(3, 5, i));
    beyond_2 += x > 2;
    beyond_4 += x > 4;
  }
  EXPECT_NEAR(static_cast<double>(beyond_2), 45500, 5 * 210);
  EXPECT_NEAR(static_cast<double>(beyond_4), 63.3, 5 * 8);
}

TEST(InitialValues, NeighboursAreNotCorrelated) {
  constexpr uint64_t kCount = 200000;
  for (const uint64_t lag : {1, 2, 3, 64}) {
    double sum = 0;
    for (uint64_t i = 0; i < kCount; ++i) {
      sum += CounterNormal(1, 2, i) * CounterNormal(1, 2, i + lag);
    }
    EXPECT_NEAR(sum / kCount, 0, 5 / std::sqrt(1.0 * kCount)) << lag;
  }
}

TEST(InitialValues, SeedsAndNamesGiveOtherNumbers) {
  const job::ParameterInfo q = Matrix("layers.0.attn.q.weight", 8, 8);
  const job::ParameterInfo k = Matrix("layers.0.attn.k.weight", 8, 8);
  EXPECT_NE(ValuesOf(q, 0, 64, 1), ValuesOf(q, 0, 64, 2));
  EXPECT_NE(ValuesOf(q, 0, 64, 1), ValuesOf(k, 0, 64, 1));
  EXPECT_EQ(ValuesOf(q, 0, 64, 1), ValuesOf(q, 0, 64, 1));
}

TEST(InitialValues, MatricesThatEndABranchAreScaledDown) {
  const double full = 0.02, scaled = 0.02 / std::sqrt(2.0 * kLayers);
  const std::vector<std::pair<const char*, double>> expected = {
      {"embed.weight", full},
      {"layers.1.attn.q.weight", full},
      {"layers.1.attn.v.weight", full},
      {"layers.1.attn.o.weight", scaled},
      {"layers.1.moe.router.weight", full},
      {"layers.1.moe.experts.3.up.weight", full},
      {"layers.1.moe.experts.3.down.weight", scaled},
      {"layers.1.lobe.k.weight", full},
      {"layers.1.lobe.v.weight", scaled}};
  for (const auto& [name, deviation] : expected) {
    const Moments m = MomentsOf(ValuesOf(Matrix(name, 200, 300), 0, 60000));
    EXPECT_NEAR(m.deviation / deviation, 1, 0.015) << name;
  }
}

TEST(InitialValues, GainsAreOneAndBiasesZero) {
  const job::ParameterInfo gain = {"layers.0.norm1.weight", {5}, false, false};
  const job::ParameterInfo bias = {"layers.0.moe.router.bias", {5}, false, false};
  EXPECT_EQ(ValuesOf(gain, 1, 4), std::vector<float>(3, 1.0f));
  EXPECT_EQ(ValuesOf(bias, 1, 4), std::vector<float>(3, 0.0f));
}

}  // namespace
}  // namespace ela::trainer
