#include "trainer/parallel/expert_dispatch.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace ela::trainer {
namespace {

using Counts = std::vector<int64_t>;  // [P][E]

struct Case {
  const char* name;
  int ranks;
  int64_t experts;
  Counts counts;
};

Counts RandomCounts(int ranks, int64_t experts, uint64_t seed) {
  std::mt19937_64 engine(seed);
  Counts counts(static_cast<size_t>(ranks * experts));
  for (int64_t& c : counts) c = engine() % 3 == 0 ? 0 : static_cast<int64_t>(engine() % 6);
  return counts;
}

Counts AllToExpert(int ranks, int64_t experts, int64_t chosen) {
  Counts counts(static_cast<size_t>(ranks * experts));
  for (int p = 0; p < ranks; ++p) counts[static_cast<size_t>(p * experts + chosen)] = 5;
  return counts;
}

std::vector<Case> Cases() {
  std::vector<Case> cases = {{"Nothing", 3, 6, Counts(18)},
                             {"AllToOne", 4, 8, AllToExpert(4, 8, 5)},
                             {"AloneWithOneExpert", 1, 1, {7}}};
  for (int ranks : {1, 2, 3, 4}) {
    cases.push_back({"Random", ranks, int64_t{2} * ranks,
                     RandomCounts(ranks, int64_t{2} * ranks, static_cast<uint64_t>(ranks))});
  }
  return cases;
}

std::vector<DispatchPlan> PlansOf(const Case& c) {
  std::vector<DispatchPlan> plans;
  for (int r = 0; r < c.ranks; ++r) {
    plans.push_back(MakeDispatchPlan(c.counts, c.experts, r, c.ranks));
  }
  return plans;
}

TEST(DispatchPlan, WhatOneRankSendsTheOtherExpects) {
  for (const Case& c : Cases()) {
    const std::vector<DispatchPlan> plans = PlansOf(c);
    for (size_t from = 0; from < plans.size(); ++from) {
      for (size_t to = 0; to < plans.size(); ++to) {
        EXPECT_EQ(plans[from].send_rows[to], plans[to].recv_rows[from]) << c.name;
      }
    }
  }
}

TEST(DispatchPlan, EveryRoutedRowIsComputedOnce) {
  for (const Case& c : Cases()) {
    int64_t sent = 0, computed = 0;
    for (const DispatchPlan& plan : PlansOf(c)) {
      sent += plan.sent();
      computed += plan.rows();
      EXPECT_EQ(plan.rows(),
                std::accumulate(plan.recv_rows.begin(), plan.recv_rows.end(), int64_t{0}));
      EXPECT_EQ(static_cast<int64_t>(plan.order.size()), plan.rows()) << c.name;
      std::vector<int> seen(plan.order.size());
      for (int32_t row : plan.order) ++seen[static_cast<size_t>(row)];
      EXPECT_EQ(seen, std::vector<int>(plan.order.size(), 1)) << c.name;
    }
    EXPECT_EQ(sent, std::accumulate(c.counts.begin(), c.counts.end(), int64_t{0})) << c.name;
    EXPECT_EQ(computed, sent) << c.name;
  }
}

TEST(DispatchPlan, OrderAndInverseUndoEachOther) {
  for (const Case& c : Cases()) {
    for (const DispatchPlan& plan : PlansOf(c)) {
      ASSERT_EQ(plan.order.size(), plan.inverse.size());
      for (size_t i = 0; i < plan.order.size(); ++i) {
        EXPECT_EQ(plan.inverse[static_cast<size_t>(plan.order[i])], static_cast<int32_t>(i));
      }
    }
  }
}

// The rows of one expert stand in the order of their source ranks, each source's in its own order.
TEST(DispatchPlan, RowsOfAnExpertStandBySource) {
  for (const Case& c : Cases()) {
    const int64_t own = c.experts / c.ranks;
    for (int r = 0; r < c.ranks; ++r) {
      const DispatchPlan plan = MakeDispatchPlan(c.counts, c.experts, r, c.ranks);
      std::vector<std::pair<int64_t, int>> arrived, wanted;  // (own expert, source) of each row
      const auto add = [&](auto* rows, int64_t e, int p) {
        const int64_t n = c.counts[static_cast<size_t>(p * c.experts + r * own + e)];
        rows->insert(rows->end(), static_cast<size_t>(n), {e, p});
      };
      for (int p = 0; p < c.ranks; ++p) {
        for (int64_t e = 0; e < own; ++e) add(&arrived, e, p);
      }
      for (int64_t e = 0; e < own; ++e) {
        EXPECT_EQ(plan.offsets[static_cast<size_t>(e)], static_cast<int64_t>(wanted.size()));
        for (int p = 0; p < c.ranks; ++p) add(&wanted, e, p);
      }
      for (size_t i = 0; i < plan.order.size(); ++i) {
        EXPECT_EQ(arrived[static_cast<size_t>(plan.order[i])], wanted[i]) << c.name;
        if (i == 0 || wanted[i] != wanted[i - 1]) continue;
        EXPECT_LT(plan.order[i - 1], plan.order[i]);
      }
    }
  }
}

TEST(DispatchPlan, AnExpertWithNoRowIsAnEmptyRange) {
  const DispatchPlan plan = MakeDispatchPlan({2, 0, 1, 1, 3, 0, 0, 0}, 4, 0, 2);
  EXPECT_EQ(plan.offsets, (std::vector<int64_t>{0, 5, 5}));
  EXPECT_EQ(plan.send_rows, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(plan.recv_rows, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(plan.order, (std::vector<int32_t>{0, 1, 2, 3, 4}));
}

}  // namespace
}  // namespace ela::trainer
