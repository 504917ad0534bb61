// The pure half of state_exchange.h: which rows and which ranks share a document.
#include <algorithm>

#include "trainer/parallel/mesh.h"
#include "trainer/parallel/state_exchange.h"

namespace ela::trainer {

kernels::Spans LocalSpans(const DocumentStarts& starts, int64_t begin, int64_t end) {
  kernels::Spans spans;
  const int64_t length = end - begin;
  for (size_t b = 0; b < starts.size(); ++b) {
    const int64_t first_row = static_cast<int64_t>(b) * length;
    spans.begin.push_back(first_row);
    spans.sequence.push_back(static_cast<int32_t>(b));
    for (int64_t start : starts[b]) {
      if (start <= begin || start >= end) continue;
      spans.begin.push_back(first_row + start - begin);
      spans.sequence.push_back(static_cast<int32_t>(b));
    }
  }
  spans.begin.push_back(static_cast<int64_t>(starts.size()) * length);
  return spans;
}

FoldPlan PlanFolds(const DocumentStarts& starts, int64_t length, int shard, int shards) {
  FoldPlan plan;
  plan.shards = shards;
  plan.shard = shard;
  plan.sequences = static_cast<int64_t>(starts.size());
  const std::vector<uint8_t> none(starts.size(), 0);
  plan.before.assign(static_cast<size_t>(shards), none);
  plan.after = plan.before;
  const int64_t begin = ShardBegin(length, shard, shards);
  const int64_t end = ShardBegin(length, shard + 1, shards);
  if (begin == end) return plan;  // no row to fold for

  for (size_t b = 0; b < starts.size(); ++b) {
    const std::vector<int64_t>& docs = starts[b];
    // The document of the first row starts here; that of the last row ends before there.
    const int64_t from = *std::prev(std::upper_bound(docs.begin(), docs.end(), begin));
    const auto next = std::lower_bound(docs.begin(), docs.end(), end);
    const int64_t to = next == docs.end() ? length : *next;
    for (int r = 0; r < shards; ++r) {
      const int64_t r_begin = ShardBegin(length, r, shards);
      const int64_t r_end = ShardBegin(length, r + 1, shards);
      if (r_begin == r_end) continue;
      if (r < shard && r_end > from) plan.before[static_cast<size_t>(r)][b] = 1;
      if (r > shard && r_begin < to) plan.after[static_cast<size_t>(r)][b] = 1;
    }
  }
  return plan;
}

}  // namespace ela::trainer
