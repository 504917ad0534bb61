#include "kernels/ela/cuda/plan.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kStateBytes = 64 << 20;  // of a group: some thread blocks a multiprocessor

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Appends the segments of span s, each of about `rows` rows.
void AddChain(ScanPlan* plan, const Spans& spans, int32_t s, int64_t rows, int64_t chunk) {
  const int64_t begin = spans.begin[static_cast<size_t>(s)];
  const int64_t end = spans.begin[static_cast<size_t>(s) + 1];
  const int64_t chunks = CeilDiv(end - begin, chunk);
  const int64_t count = std::clamp<int64_t>(CeilDiv(end - begin, rows), 1, chunks);
  const auto chain = static_cast<int32_t>(plan->chains.size());
  plan->chains.push_back({static_cast<int32_t>(plan->num_slots), static_cast<int32_t>(count), s});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from = begin + chunks * i / count * chunk;
    const int64_t to = std::min(end, begin + chunks * (i + 1) / count * chunk);
    plan->items.push_back({from, to, s, static_cast<int32_t>(plan->num_slots++), chain});
  }
}

/// Deals out the items of a plan without groups, and numbers the slots within each.
void CutIntoGroups(ScanPlan* plan, int64_t most_slots) {
  const int64_t total = std::max<int64_t>(1, plan->num_slots);
  const int64_t even = CeilDiv(total, CeilDiv(total, std::min(most_slots, total)));
  int64_t slots = 0;  // of the group
  int32_t before = 0, chains = 0;
  plan->num_slots = 0;
  for (size_t i = 0; i < plan->items.size(); ++i) {
    ScanItem& item = plan->items[i];
    const bool starts_chain = item.chain >= 0 && (i == 0 || plan->items[i - 1].chain != item.chain);
    const int64_t count = starts_chain ? plan->chains[static_cast<size_t>(item.chain)].count : 0;
    const bool full = slots > 0 && (slots >= even || slots + count > most_slots);
    if (plan->groups.empty() || (starts_chain && full)) {
      plan->groups.push_back({static_cast<int32_t>(i), 0, chains, 0, item.begin, item.end});
      before += static_cast<int32_t>(slots);
      slots = 0;
    }
    ScanGroup& group = plan->groups.back();
    if (starts_chain) {
      plan->chains[static_cast<size_t>(item.chain)].first_slot -= before;
      ++group.num_chains, ++chains;
      slots += count;
      plan->num_slots = std::max(plan->num_slots, slots);
    }
    if (item.slot >= 0) item.slot -= before;
    ++group.num_items;
    group.end = item.end;
  }
}

}  // namespace

std::vector<int32_t> EdgeSpanIndices(const Spans& spans, SpanEdge edge) {
  std::vector<int32_t> edges;
  const int64_t n = spans.count();
  for (int64_t s = 0; s < n; ++s) {
    const auto sequence = [&](int64_t i) { return spans.sequence[static_cast<size_t>(i)]; };
    const bool first = s == 0 || sequence(s - 1) != sequence(s);
    const bool last = s + 1 == n || sequence(s + 1) != sequence(s);
    if (edge == SpanEdge::kFirst ? first : last) edges.push_back(static_cast<int32_t>(s));
  }
  return edges;
}

ScanPlan PlanScan(const Spans& spans, const std::vector<int32_t>& which, const ScanShape& shape) {
  std::vector<int32_t> order = which;
  if (order.empty()) {
    order.resize(static_cast<size_t>(spans.count()));
    std::iota(order.begin(), order.end(), 0);
  }
  const auto begin = [&](int32_t s) { return spans.begin[static_cast<size_t>(s)]; };
  int64_t rows = 0, nonempty = 0, longest = 0;
  for (int32_t s : order) {
    rows += begin(s + 1) - begin(s);
    nonempty += begin(s + 1) > begin(s);
    longest = std::max(longest, begin(s + 1) - begin(s));
  }
  ScanPlan plan;
  if (rows == 0) return plan;
  // Blocks that work in parallel if every span is walked by one: the longest span sets the time.
  const int64_t item_blocks = shape.num_heads * shape.blocks_per_item;
  const double parallel =
      static_cast<double>(rows) / static_cast<double>(longest) * static_cast<double>(item_blocks);
  const int64_t items = std::max<int64_t>(1, shape.target_blocks / item_blocks);
  const bool split = parallel < 0.7 * static_cast<double>(shape.target_blocks);
  // Rows of an item. Without a split the longest span is one item.
  const int64_t target =
      std::max(shape.chunk, CeilDiv(CeilDiv(rows, items), shape.chunk) * shape.chunk);
  const int64_t limit = split ? target + target / 4 : longest;
  int64_t open = 0;  // rows of the item that still takes spans
  for (int32_t s : order) {
    const int64_t length = begin(s + 1) - begin(s);
    if (length == 0) continue;
    if (length > limit || shape.every_span_a_chain) {
      AddChain(&plan, spans, s, split ? target : length, shape.chunk);
      open = 0;
      continue;
    }
    const bool adjacent = !plan.items.empty() && plan.items.back().end == begin(s);
    if (open > 0 && adjacent && open + length <= target) {
      plan.items.back().end = begin(s + 1);
      open += length;
    } else {
      plan.items.push_back({begin(s), begin(s + 1), s, -1, -1});
      open = length;
    }
  }
  CutIntoGroups(&plan, shape.most_slots);
  return plan;
}

int64_t MostSlots(int64_t state_bytes) { return std::max<int64_t>(1, kStateBytes / state_bytes); }

int64_t PartsOfItem(int64_t blocks, int64_t resident) {
  return std::max<int64_t>(1, resident / std::max<int64_t>(1, blocks));
}

std::string ToString(const ScanPlan& plan) {
  int64_t longest = 0;
  for (const ScanItem& item : plan.items) longest = std::max(longest, item.end - item.begin);
  char text[128];
  std::snprintf(text, sizeof text, "%zu items of at most %lld rows, %zu chains, %lld states",
                plan.items.size(), static_cast<long long>(longest), plan.chains.size(),
                static_cast<long long>(plan.num_slots));
  return text;
}

}  // namespace ela::kernels::cuda
