// Spans and fold plans of packed documents, against the definition: every row sees the rows of its
// own document, whoever holds them.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "trainer/parallel/mesh.h"
#include "trainer/parallel/state_exchange.h"

namespace ela::trainer {
namespace {

struct Layout {
  int64_t length;
  DocumentStarts starts;
};

/// Documents of one row, shards' own length, longer than two shards, and anything between.
std::vector<Layout> Layouts() {
  std::vector<Layout> layouts = {
      {12, {{0}}},
      {12, {{0, 1, 2, 11}}},
      {12, {{0, 3, 6, 9}, {0, 4, 8}}},
      {12, {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {0}, {0, 10}}},
      {13, {{0, 2, 12}, {0, 7}}},
      {3, {{0}, {0, 1}, {0, 2}, {0, 1, 2}}},
      {1, {{0}}},
  };
  std::mt19937_64 engine(7);
  for (int i = 0; i < 40; ++i) {
    Layout layout{static_cast<int64_t>(1 + engine() % 30), {}};
    for (int b = 0; b < 3; ++b) {
      std::vector<int64_t> starts = {0};
      for (int64_t t = 1; t < layout.length; ++t) {
        if (engine() % 4 == 0) starts.push_back(t);
      }
      layout.starts.push_back(starts);
    }
    layouts.push_back(layout);
  }
  return layouts;
}

struct Range {
  int64_t begin, end;
  bool operator==(const Range& other) const { return begin == other.begin && end == other.end; }
};

Range DocumentOf(const Layout& layout, size_t b, int64_t row) {
  const std::vector<int64_t>& starts = layout.starts[b];
  Range document{0, layout.length};
  for (int64_t start : starts) {
    if (start <= row) document.begin = start;
    if (start > row) return {document.begin, start};
  }
  return document;
}

Range ShardOf(const Layout& layout, int shard, int shards) {
  return {ShardBegin(layout.length, shard, shards), ShardBegin(layout.length, shard + 1, shards)};
}

template <class Body>
void ForEveryShard(const Body& body) {
  for (const Layout& layout : Layouts()) {
    for (int shards = 1; shards <= 5; ++shards) {
      for (int s = 0; s < shards; ++s) body(layout, s, shards);
    }
  }
}

/// The rows of sequence b that shard `shard` exports: those of its first or last span.
Range Exported(const Layout& layout, int shard, int shards, size_t b, bool last) {
  const Range rows = ShardOf(layout, shard, shards);
  const kernels::Spans spans = LocalSpans(layout.starts, rows.begin, rows.end);
  Range span{0, 0};
  bool found = false;
  for (size_t i = 0; i < spans.sequence.size(); ++i) {
    if (spans.sequence[i] != static_cast<int32_t>(b) || (found && !last)) continue;
    const int64_t first = static_cast<int64_t>(b) * (rows.end - rows.begin) - rows.begin;
    span = {spans.begin[i] - first, spans.begin[i + 1] - first};
    found = true;
  }
  return span;
}

TEST(LocalSpans, CutTheRowsWhereDocumentsStart) {
  ForEveryShard([](const Layout& layout, int shard, int shards) {
    const Range rows = ShardOf(layout, shard, shards);
    const int64_t length = rows.end - rows.begin;
    const kernels::Spans spans = LocalSpans(layout.starts, rows.begin, rows.end);
    ASSERT_EQ(spans.begin.size(), spans.sequence.size() + 1);
    ASSERT_EQ(spans.begin.front(), 0);
    ASSERT_EQ(spans.begin.back(), length * static_cast<int64_t>(layout.starts.size()));
    for (size_t i = 0; i < spans.sequence.size(); ++i) {
      const size_t b = static_cast<size_t>(spans.sequence[i]);
      const int64_t first = static_cast<int64_t>(b) * length;
      if (length == 0) continue;
      const Range document = DocumentOf(layout, b, spans.begin[i] - first + rows.begin);
      EXPECT_EQ(spans.begin[i], first + std::max(document.begin, rows.begin) - rows.begin);
      EXPECT_EQ(spans.begin[i + 1], first + std::min(document.end, rows.end) - rows.begin);
    }
  });
}

TEST(LocalSpans, EverySequenceHasASpanEvenWithoutRows) {
  ForEveryShard([](const Layout& layout, int shard, int shards) {
    const Range rows = ShardOf(layout, shard, shards);
    const kernels::Spans spans = LocalSpans(layout.starts, rows.begin, rows.end);
    EXPECT_TRUE(std::is_sorted(spans.sequence.begin(), spans.sequence.end()));
    for (size_t b = 0; b < layout.starts.size(); ++b) {
      const auto n = std::count(spans.sequence.begin(), spans.sequence.end(), static_cast<int>(b));
      EXPECT_GE(n, 1);
      EXPECT_TRUE(rows.begin < rows.end || n == 1);
    }
  });
}

// What the plan folds, of what the ranks export, is the part of the document that others hold.
TEST(PlanFolds, BeforeIsTheDocumentUpToTheFirstRow) {
  ForEveryShard([](const Layout& layout, int shard, int shards) {
    const FoldPlan plan = PlanFolds(layout.starts, layout.length, shard, shards);
    const Range rows = ShardOf(layout, shard, shards);
    for (size_t b = 0; b < layout.starts.size() && rows.begin < rows.end; ++b) {
      int64_t at = DocumentOf(layout, b, rows.begin).begin;
      for (int r = 0; r < shards; ++r) {
        if (plan.before[static_cast<size_t>(r)][b] == 0) continue;
        ASSERT_LT(r, shard);
        const Range piece = Exported(layout, r, shards, b, /*last=*/true);
        EXPECT_EQ(piece.begin, at);
        EXPECT_LT(piece.begin, piece.end);
        at = piece.end;
      }
      EXPECT_EQ(at, std::max(rows.begin, DocumentOf(layout, b, rows.begin).begin));
    }
  });
}

TEST(PlanFolds, AfterIsTheRestOfTheDocument) {
  ForEveryShard([](const Layout& layout, int shard, int shards) {
    const FoldPlan plan = PlanFolds(layout.starts, layout.length, shard, shards);
    const Range rows = ShardOf(layout, shard, shards);
    for (size_t b = 0; b < layout.starts.size() && rows.begin < rows.end; ++b) {
      int64_t at = rows.end;
      for (int r = 0; r < shards; ++r) {
        if (plan.after[static_cast<size_t>(r)][b] == 0) continue;
        ASSERT_GT(r, shard);
        const Range piece = Exported(layout, r, shards, b, /*last=*/false);
        EXPECT_EQ(piece.begin, at);
        EXPECT_LT(piece.begin, piece.end);
        at = piece.end;
      }
      EXPECT_EQ(at, DocumentOf(layout, b, rows.end - 1).end);
    }
  });
}

TEST(PlanFolds, AShardWithoutRowsFoldsNothingAndIsPassedOver) {
  const DocumentStarts starts = {{0}};
  for (int shard = 0; shard < 5; ++shard) {  // shards of 0, 0, 1, 0, 1 rows
    const FoldPlan plan = PlanFolds(starts, 2, shard, 5);
    for (size_t r = 0; r < 5; ++r) {
      EXPECT_EQ(plan.before[r][0], shard == 4 && r == 2 ? 1 : 0) << shard << " " << r;
      EXPECT_EQ(plan.after[r][0], shard == 2 && r == 4 ? 1 : 0) << shard << " " << r;
    }
  }
}

TEST(PlanFolds, ADocumentLongerThanTwoShardsIsFoldedFromAllOfThem) {
  const FoldPlan plan = PlanFolds({{0, 2}}, 16, 3, 4);  // document 1 covers rows 2 to 15
  EXPECT_EQ(plan.before, (std::vector<std::vector<uint8_t>>{{1}, {1}, {1}, {0}}));
  EXPECT_EQ(PlanFolds({{0, 4}}, 16, 3, 4).before,
            (std::vector<std::vector<uint8_t>>{{0}, {1}, {1}, {0}}));
}

}  // namespace
}  // namespace ela::trainer
