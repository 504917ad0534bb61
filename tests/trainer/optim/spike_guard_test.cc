#include "trainer/optim/spike_guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace ela::trainer {
namespace {

/// A loss curve as a run records it: falls from 7.6 towards 2.1, with noise of about 0.03; spikes
/// where `spikes` says.
std::vector<double> RecordedCurve(const std::vector<size_t>& spikes) {
  std::vector<double> curve;
  uint64_t state = 12345;
  for (int t = 0; t < 400; ++t) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const double noise = static_cast<double>(state >> 11) * 0x1p-53 - 0.5;
    curve.push_back(2.1 + 5.5 * std::exp(-t / 60.0) + 0.1 * noise);
  }
  for (const size_t at : spikes) curve[at] += 1.5;
  return curve;
}

/// Steps that the guard calls spikes.
std::vector<size_t> SpikesOf(SpikeGuard* guard, const std::vector<double>& curve, size_t begin,
                             size_t end) {
  std::vector<size_t> found;
  for (size_t t = begin; t < end; ++t) {
    if (guard->IsSpike(curve[t])) found.push_back(t);
    guard->Add(curve[t]);
  }
  return found;
}

SpikeGuard Guard(double z_score = 6, int64_t size = 32) {
  return {.z_score = z_score, .size = size, .window = {}};
}

TEST(SpikeGuard, FindsTheSpikesOfARecordedCurveAndNothingElse) {
  const std::vector<size_t> spikes = {250, 251, 320, 399};
  SpikeGuard guard = Guard();
  EXPECT_EQ(SpikesOf(&guard, RecordedCurve(spikes), 0, 400), spikes);
}

TEST(SpikeGuard, DecidesAfterAResumeAsIfItHadNeverStopped) {
  const std::vector<double> curve = RecordedCurve({250, 251, 320});
  SpikeGuard whole = Guard();
  SpikesOf(&whole, curve, 0, 251);
  SpikeGuard resumed = Guard();
  resumed.window = whole.window;
  EXPECT_EQ(SpikesOf(&resumed, curve, 251, 400), SpikesOf(&whole, curve, 251, 400));
  EXPECT_EQ(resumed.window, whole.window);
}

TEST(SpikeGuard, SaysNothingUntilItsWindowIsFull) {
  SpikeGuard guard = Guard(3, 8);
  for (int i = 0; i < 7; ++i) guard.Add(2 + 0.01 * (i % 2));
  EXPECT_FALSE(guard.IsSpike(1e9));
  guard.Add(2);
  EXPECT_TRUE(guard.IsSpike(1e9));
}

TEST(SpikeGuard, CountsDeviationsOfTheWindow) {
  SpikeGuard guard = Guard(3, 4);
  for (const double loss : {1.0, 3.0, 1.0, 3.0}) guard.Add(loss);  // mean 2, deviation 1
  EXPECT_FALSE(guard.IsSpike(5));
  EXPECT_TRUE(guard.IsSpike(std::nextafter(5.0, 6.0)));
}

TEST(SpikeGuard, TakesNoNoiseOnAFlatCurveForASpike) {
  SpikeGuard guard = Guard(3, 8);
  for (int i = 0; i < 8; ++i) guard.Add(2);
  EXPECT_FALSE(guard.IsSpike(2.0059));  // the deviation counts as 0.1% of 2
  EXPECT_TRUE(guard.IsSpike(2.0061));
}

TEST(SpikeGuard, FollowsALastingChange) {
  SpikeGuard guard = Guard(4, 16);
  for (int i = 0; i < 16; ++i) guard.Add(2 + 0.02 * (i % 2));
  int spikes = 0;
  while (guard.IsSpike(4) && spikes < 1000) {
    guard.Add(4);
    ++spikes;
  }
  EXPECT_GT(spikes, 1);
  EXPECT_LT(spikes, 32);
}

TEST(SpikeGuard, KeepsTheNewestLosses) {
  SpikeGuard guard = Guard(0, 3);
  for (const double loss : {1.0, 2.0, 3.0, 4.0, 5.0}) guard.Add(loss);
  EXPECT_EQ(guard.window, (std::vector<double>{3, 4, 5}));
}

TEST(SpikeGuard, ShrinksAWindowOfALargerGuard) {
  SpikeGuard guard = Guard(3, 2);
  guard.window = {1, 2, 3, 4};
  guard.Add(5);
  EXPECT_EQ(guard.window.size(), 2u);
}

TEST(SpikeGuard, LeavesNonFiniteLossesToTheirOwnPolicy) {
  SpikeGuard guard = Guard(3, 4);
  for (const double loss : {1.0, 3.0, 1.0, 3.0}) guard.Add(loss);
  for (const double loss :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_FALSE(guard.IsSpike(loss));
    guard.Add(loss);
  }
  EXPECT_EQ(guard.window, (std::vector<double>{1, 3, 1, 3}));
}

TEST(SpikeGuard, ThatIsOffFindsNothing) {
  SpikeGuard guard = Guard(0, 4);
  for (int i = 0; i < 8; ++i) guard.Add(1);
  EXPECT_FALSE(guard.IsSpike(1e300));
}

}  // namespace
}  // namespace ela::trainer
