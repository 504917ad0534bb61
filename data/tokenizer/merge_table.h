// Byte-pair merges: which two neighbouring symbols become one, and in which order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ela::data {

/// Pairs of symbols to (rank, merged symbol). Symbols are >= 0; a symbol < 0 merges with nothing.
class MergeTable {
 public:
  static constexpr int32_t kNone = INT32_MAX;
  struct Merge {
    int32_t rank = kNone;  // lower merges first; kNone: the pair does not merge
    int32_t symbol = -1;
  };

  explicit MergeTable(size_t pairs_hint = 0);
  /// The first rank given to a pair stays if it is the lower one.
  void Add(int32_t left, int32_t right, int32_t rank, int32_t symbol);

  Merge Find(int32_t left, int32_t right) const {
    if ((left | right) < 0) return {};
    const uint64_t key = Key(left, right);
    for (size_t slot = Slot(key);; slot = (slot + 1) & mask_) {
      if (entries_[slot].key == key) return entries_[slot].merge;
      if (entries_[slot].key == kEmpty) return {};
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Entry {
    uint64_t key = kEmpty;
    Merge merge;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t Slot(uint64_t key) const {
    return static_cast<size_t>((key * 0x9e3779b97f4a7c15u) >> shift_);
  }
  void Resize(size_t slots);

  std::vector<Entry> entries_;
  size_t used_ = 0;
  size_t mask_ = 0;
  int shift_ = 0;
};

/// Applies merges, the lowest rank first and, of equal ranks, the leftmost, until none is left.
/// Short texts by scanning, long ones with a heap: O(n log n). Holds only scratch memory.
class Merger {
 public:
  void Apply(const MergeTable& table, std::vector<int32_t>* symbols);

 private:
  struct Node {
    int32_t symbol;
    int32_t previous;
    int32_t next;  // -1 at the ends
  };
  struct Candidate {
    int32_t rank;
    int32_t left;   // node
    int32_t right;  // node
    int32_t left_symbol;
    int32_t right_symbol;
    int32_t merged;
  };
  void ApplyByScanning(const MergeTable& table, std::vector<int32_t>* symbols);
  void ApplyWithHeap(const MergeTable& table, std::vector<int32_t>* symbols);
  void Push(const MergeTable& table, int32_t left, int32_t right);

  std::vector<MergeTable::Merge> pairs_;
  std::vector<Node> nodes_;
  std::vector<Candidate> heap_;
};

}  // namespace ela::data
