#include "trainer/parallel/ring_schedule.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>

namespace ela::trainer {
namespace {

constexpr int kMostShards = 9;

/// Query rows, of 10, that are computed for each pair of (queries' shard, keys' shard).
std::map<std::pair<int, int>, int64_t> ComputedPairs(int shards, bool causal) {
  constexpr int64_t kRows = 10;
  std::map<std::pair<int, int>, int64_t> pairs;
  for (int r = 0; r < shards; ++r) {
    pairs[{r, r}] += kRows;
    for (int t = 1; t <= RingSteps(shards, causal); ++t) {
      const RingStep step = RingStepOf(t, r, shards, causal);
      if (step.gets_keys) {
        pairs[{r, step.from}] += step.OwnersEnd(kRows);
      } else {
        pairs[{step.from, r}] += kRows - step.HelpersBegin(kRows);
      }
    }
  }
  return pairs;
}

TEST(RingSchedule, ComputesEveryPairThatMayMeetOnce) {
  for (const bool causal : {true, false}) {
    for (int shards = 1; shards <= kMostShards; ++shards) {
      const auto pairs = ComputedPairs(shards, causal);
      for (int i = 0; i < shards; ++i) {
        for (int j = 0; j < shards; ++j) {
          const bool meet = !causal || j <= i;
          EXPECT_EQ(pairs.count({i, j}), meet) << shards << ": " << i << " " << j;
          if (meet) {
            EXPECT_EQ(pairs.at({i, j}), 10) << shards << ": " << i << " " << j;
          }
        }
      }
    }
  }
}

TEST(RingSchedule, GivesEveryRankTheSameWork) {
  for (int shards = 1; shards <= kMostShards; ++shards) {
    for (int r = 0; r < shards; ++r) {
      double pairs = 0;
      for (int t = 1; t <= RingSteps(shards, true); ++t) {
        pairs += RingStepOf(t, r, shards, true).halved ? 0.5 : 1;
      }
      EXPECT_EQ(pairs, (shards - 1) / 2.0) << shards << " " << r;
    }
  }
}

TEST(RingSchedule, WhatOneSendsTheOtherExpects) {
  for (const bool causal : {true, false}) {
    for (int shards = 2; shards <= kMostShards; ++shards) {
      for (int t = 1; t <= RingSteps(shards, causal); ++t) {
        for (int r = 0; r < shards; ++r) {
          const RingStep mine = RingStepOf(t, r, shards, causal);
          const RingStep theirs = RingStepOf(t, mine.to, shards, causal);
          EXPECT_EQ(theirs.from, r);
          EXPECT_EQ(theirs.gets_keys, mine.sends_keys);
          EXPECT_EQ(theirs.halved, mine.halved);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ela::trainer
