#include "data/tokenizer/merge_table.h"

#include <algorithm>
#include <utility>

namespace ela::data {
namespace {

constexpr size_t kScanLimit = 32;  // symbols; beyond it n * merges costs more than a heap

}  // namespace

MergeTable::MergeTable(size_t pairs_hint) {
  size_t slots = 16;
  while (slots < pairs_hint * 2) slots *= 2;
  Resize(slots);
}

void MergeTable::Resize(size_t slots) {
  std::vector<Entry> old = std::exchange(entries_, std::vector<Entry>(slots));
  mask_ = slots - 1;
  shift_ = 64 - __builtin_ctzll(slots);
  for (const Entry& entry : old) {
    if (entry.key == kEmpty) continue;
    size_t slot = Slot(entry.key);
    while (entries_[slot].key != kEmpty) slot = (slot + 1) & mask_;
    entries_[slot] = entry;
  }
}

void MergeTable::Add(int32_t left, int32_t right, int32_t rank, int32_t symbol) {
  if ((used_ + 1) * 2 > entries_.size()) Resize(entries_.size() * 2);
  const uint64_t key = Key(left, right);
  size_t slot = Slot(key);
  while (entries_[slot].key != kEmpty && entries_[slot].key != key) slot = (slot + 1) & mask_;
  if (entries_[slot].key == kEmpty) {
    ++used_;
  } else if (entries_[slot].merge.rank <= rank) {
    return;
  }
  entries_[slot] = {key, {rank, symbol}};
}

void Merger::Apply(const MergeTable& table, std::vector<int32_t>* symbols) {
  if (symbols->size() < 2) return;
  if (symbols->size() <= kScanLimit) {
    ApplyByScanning(table, symbols);
  } else {
    ApplyWithHeap(table, symbols);
  }
}

void Merger::ApplyByScanning(const MergeTable& table, std::vector<int32_t>* symbols) {
  std::vector<int32_t>& s = *symbols;
  size_t n = s.size();
  pairs_.resize(n);
  for (size_t i = 0; i + 1 < n; ++i) pairs_[i] = table.Find(s[i], s[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (pairs_[i].rank < pairs_[best].rank) best = i;
    }
    if (pairs_[best].rank == MergeTable::kNone) break;
    s[best] = pairs_[best].symbol;
    std::copy(s.begin() + best + 2, s.begin() + n, s.begin() + best + 1);
    std::copy(pairs_.begin() + best + 2, pairs_.begin() + n, pairs_.begin() + best + 1);
    --n;
    if (best > 0) pairs_[best - 1] = table.Find(s[best - 1], s[best]);
    if (best + 1 < n) pairs_[best] = table.Find(s[best], s[best + 1]);
  }
  s.resize(n);
}

void Merger::Push(const MergeTable& table, int32_t left, int32_t right) {
  if (left < 0 || right < 0) return;
  const MergeTable::Merge merge = table.Find(nodes_[left].symbol, nodes_[right].symbol);
  if (merge.rank == MergeTable::kNone) return;
  heap_.push_back(
      {merge.rank, left, right, nodes_[left].symbol, nodes_[right].symbol, merge.symbol});
}

void Merger::ApplyWithHeap(const MergeTable& table, std::vector<int32_t>* symbols) {
  constexpr int32_t kGone = -2;  // the symbol of a node that was merged into its left neighbour
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  const auto n = static_cast<int32_t>(symbols->size());
  nodes_.resize(symbols->size());
  heap_.clear();
  for (int32_t i = 0; i < n; ++i) nodes_[i] = {(*symbols)[i], i - 1, i + 1 < n ? i + 1 : -1};
  for (int32_t i = 0; i + 1 < n; ++i) Push(table, i, i + 1);
  std::make_heap(heap_.begin(), heap_.end(), later);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const Candidate top = heap_.back();
    heap_.pop_back();
    Node& left = nodes_[top.left];
    Node& right = nodes_[top.right];
    // One of the two has been merged with another since.
    if (left.symbol != top.left_symbol || right.symbol != top.right_symbol ||
        left.next != top.right) {
      continue;
    }
    left.symbol = top.merged;
    left.next = right.next;
    right.symbol = kGone;
    if (right.next >= 0) nodes_[right.next].previous = top.left;
    for (const auto& [a, b] : {std::pair{left.previous, top.left}, {top.left, left.next}}) {
      const size_t before = heap_.size();
      Push(table, a, b);
      if (heap_.size() > before) std::push_heap(heap_.begin(), heap_.end(), later);
    }
  }
  size_t kept = 0;
  for (int32_t i = 0; i >= 0; i = nodes_[i].next) (*symbols)[kept++] = nodes_[i].symbol;
  symbols->resize(kept);
}

}  // namespace ela::data
