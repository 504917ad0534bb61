// How scans of exact linear attention are cut for a GPU: needs none.
#include <gtest/gtest.h>

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
