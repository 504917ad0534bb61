// How scans of exact linear attention are cut for a GPU: needs none.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/ela/cuda/plan.h"

namespace ela::kernels::cuda {
namespace {

Spans SpansOf(const std::vector<int64_t>& lengths, const std::vector<int32_t>& sequences) {
  Spans spans;
  spans.begin = {0};
  for (const int64_t length : lengths) spans.begin.push_back(spans.begin.back() + length);
  spans.sequence = sequences;
  return spans;
}

/// Every row of the spans is in one item, items ascend, and segments of a chain are whole chunks.
void ExpectCovers(const ScanPlan& plan, const Spans& spans, int64_t chunk) {
  int64_t row = 0;
  for (const ScanItem& item : plan.items) {
    EXPECT_EQ(item.begin, row);
    EXPECT_LT(item.begin, item.end);
    EXPECT_LE(spans.begin[static_cast<size_t>(item.span)], item.begin);
    EXPECT_GT(spans.begin[static_cast<size_t>(item.span) + 1], item.begin);
    const bool ends_chain =
        item.chain < 0 || item.end == spans.begin[static_cast<size_t>(item.span) + 1];
    EXPECT_TRUE(ends_chain || (item.end - item.begin) % chunk == 0) << item.begin;
    row = item.end;
  }
  EXPECT_EQ(row, spans.begin.back());
}

ScanShape ShapeOf(int64_t heads, int64_t target) {
  ScanShape shape;
  shape.num_heads = heads;
  shape.target_blocks = target;
  return shape;
}

TEST(ElaPlan, HeadsThatFillTheCardAreScannedInOnePass) {
  const Spans spans = SpansOf({4096, 4096, 4096, 4096}, {0, 1, 2, 3});
  const ScanPlan plan = PlanScan(spans, {}, ShapeOf(32, 132));
  EXPECT_EQ(plan.items.size(), 4u);
  EXPECT_TRUE(plan.chains.empty());
  ExpectCovers(plan, spans, 64);
}

TEST(ElaPlan, OneLongSequenceIsSplitSoThatItFillsTheCard) {
  const Spans spans = SpansOf({1'000'003}, {0});
  const ScanPlan plan = PlanScan(spans, {}, ShapeOf(16, 132));
  ASSERT_EQ(plan.chains.size(), 1u);
  EXPECT_EQ(plan.chains[0].count, 8);  // 8 segments of 16 heads
  EXPECT_EQ(plan.num_slots, 8);
  ExpectCovers(plan, spans, 64);
}

TEST(ElaPlan, PackedDocumentsShareItemsAndLongOnesAreSplit) {
  const Spans spans = SpansOf({3, 0, 61, 5000, 1, 64}, {0, 0, 0, 0, 0, 0});
  const ScanPlan plan = PlanScan(spans, {}, ShapeOf(2, 64));
  EXPECT_EQ(plan.items.front().end, 64) << "the first two documents";
  ASSERT_EQ(plan.chains.size(), 1u);
  EXPECT_EQ(plan.chains[0].span, 3);
  EXPECT_GT(plan.chains[0].count, 1);
  ExpectCovers(plan, spans, 64);
}

TEST(ElaPlan, BidirectionalScansMakeEverySpanAChain) {
  const Spans spans = SpansOf({70, 0, 130}, {0, 1, 2});
  ScanShape shape = ShapeOf(1, 4);
  shape.every_span_a_chain = true;
  const ScanPlan plan = PlanScan(spans, {}, shape);
  EXPECT_EQ(plan.chains.size(), 2u) << "an empty span has none";
  for (const ScanItem& item : plan.items) EXPECT_GE(item.slot, 0);
  ExpectCovers(plan, spans, 64);
}

/// Slots of a group are numbered from 0 along its items, which with those of the other groups are
/// all of the plan's. Returns the slots of each.
std::vector<int64_t> SlotsOfGroups(const ScanPlan& plan) {
  std::vector<int64_t> slots;
  int32_t item = 0, chain = 0;
  for (const ScanGroup& group : plan.groups) {
    EXPECT_EQ(group.first_item, item);
    EXPECT_EQ(group.first_chain, chain);
    int32_t slot = 0;
    for (; item < group.first_item + group.num_items; ++item) {
      const ScanItem& at = plan.items[static_cast<size_t>(item)];
      EXPECT_TRUE(group.begin <= at.begin && at.end <= group.end);
      EXPECT_EQ(at.slot, slot++);
      if (at.chain != chain) continue;
      EXPECT_EQ(plan.chains[static_cast<size_t>(chain++)].first_slot, at.slot);
    }
    EXPECT_EQ(chain, group.first_chain + group.num_chains);
    slots.push_back(slot);
  }
  EXPECT_EQ(item, static_cast<int32_t>(plan.items.size()));
  EXPECT_EQ(chain, static_cast<int32_t>(plan.chains.size()));
  EXPECT_EQ(*std::max_element(slots.begin(), slots.end()), plan.num_slots);
  return slots;
}

TEST(ElaPlan, ManySpansBothWaysAreScannedInGroups) {
  ScanShape shape = ShapeOf(16, 132);
  shape.every_span_a_chain = true;
  shape.most_slots = 60;
  const Spans documents = SpansOf(std::vector<int64_t>(4096, 64), std::vector<int32_t>(4096, 0));
  const ScanPlan plan = PlanScan(documents, {}, shape);
  EXPECT_LE(plan.num_slots, 60);
  EXPECT_EQ(SlotsOfGroups(plan).size(), 69u) << "as few as 60 slots each allow";
  ExpectCovers(plan, documents, 64);
  const Spans sequences = SpansOf({4096, 4096, 4096, 0, 4096, 4096}, {0, 1, 2, 3, 4, 5});
  shape.num_heads = 32;  // fill the card: nothing is split
  shape.most_slots = 4;
  EXPECT_EQ(SlotsOfGroups(PlanScan(sequences, {}, shape)), (std::vector<int64_t>{3, 2}));
}

TEST(ElaPlan, AChainIsNeverCutBetweenGroups) {
  ScanShape shape = ShapeOf(4, 132);
  shape.every_span_a_chain = true;
  shape.most_slots = 5;
  const Spans spans = SpansOf({64, 10'000, 1, 200, 300, 3'000, 64}, {0, 0, 0, 0, 0, 0, 0});
  const ScanPlan plan = PlanScan(spans, {}, shape);
  ExpectCovers(plan, spans, 64);
  const int32_t longest = plan.chains[1].count;
  EXPECT_GT(longest, 5);
  EXPECT_EQ(plan.num_slots, longest) << "alone in its group";
  const std::vector<int64_t> slots = SlotsOfGroups(plan);
  EXPECT_GT(slots.size(), 2u);
  for (size_t i = 0; i < slots.size(); ++i) {
    EXPECT_TRUE(slots[i] <= 5 || plan.groups[i].num_chains == 1) << slots[i];
  }
}

TEST(ElaPlan, StatesOfAGroupAreBounded) {
  EXPECT_EQ(MostSlots(1 << 20), 64);
  EXPECT_EQ(MostSlots(int64_t{1} << 40), 1);
}

TEST(ElaPlan, ReadersFillTheCardInOneWave) {
  EXPECT_EQ(PartsOfItem(128, 264), 2);
  EXPECT_EQ(PartsOfItem(264, 264), 1);
  EXPECT_EQ(PartsOfItem(1000, 264), 1);
  EXPECT_EQ(PartsOfItem(0, 264), 264) << "no items: nothing is launched";
}

TEST(ElaPlan, NoRowsNeedNoWork) {
  EXPECT_TRUE(PlanScan(SpansOf({0, 0}, {0, 1}), {}, ShapeOf(4, 132)).items.empty());
}

TEST(ElaPlan, EdgeSpansAreTheFirstAndLastOfEachSequence) {
  const Spans spans = SpansOf({1, 2, 3, 4}, {0, 0, 0, 1});
  EXPECT_EQ(EdgeSpanIndices(spans, SpanEdge::kFirst), (std::vector<int32_t>{0, 3}));
  EXPECT_EQ(EdgeSpanIndices(spans, SpanEdge::kLast), (std::vector<int32_t>{2, 3}));
}

TEST(ElaPlan, PrintsOneLine) {
  const ScanPlan plan = PlanScan(SpansOf({128}, {0}), {}, ShapeOf(1, 2));
  EXPECT_EQ(ToString(plan), "2 items of at most 64 rows, 1 chains, 2 states");
}

}  // namespace
}  // namespace ela::kernels::cuda
