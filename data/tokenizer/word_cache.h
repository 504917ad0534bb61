// Remembers the ids of words seen before.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace ela::data {

/// One thread. Forgets everything when it is full, so its memory is bounded (under 32 MiB).
class WordCache {
 public:
  WordCache() : slots_(kSlots) {}

  /// Appends the ids of `word`, from memory or from encode(word, ids).
  template <typename Encode>
  void Append(std::string_view word, const Encode& encode, std::vector<int32_t>* ids) {
    if (word.size() > kMaxWordBytes) {
      encode(word, ids);
      return;
    }
    const uint64_t hash = XXH3_64bits(word.data(), word.size()) | 1;  // 0: a free slot
    size_t at = hash >> kShift;
    for (; slots_[at].hash != 0; at = (at + 1) & (kSlots - 1)) {
      const Slot& slot = slots_[at];
      if (slot.hash != hash || slot.bytes != word.size() ||
          std::memcmp(text_.data() + slot.text, word.data(), word.size()) != 0) {
        continue;
      }
      const int32_t* first = ids_.data() + slot.ids;
      ids->insert(ids->end(), first, first + slot.count);
      return;
    }
    const size_t before = ids->size();
    encode(word, ids);
    if (used_ >= kMaxWords) {
      Clear();
      at = hash >> kShift;
    }
    ++used_;
    slots_[at] = {hash, static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(ids_.size()),
                  static_cast<uint16_t>(word.size()), static_cast<uint16_t>(ids->size() - before)};
    text_.append(word);
    ids_.insert(ids_.end(), ids->begin() + static_cast<int64_t>(before), ids->end());
  }

 private:
  static constexpr int kShift = 64 - 18;
  static constexpr size_t kSlots = size_t{1} << 18;
  static constexpr size_t kMaxWords = kSlots / 2;
  static constexpr size_t kMaxWordBytes = 64;
  struct Slot {
    uint64_t hash = 0;
    uint32_t text = 0;  // offset in text_
    uint32_t ids = 0;   // offset in ids_
    uint16_t bytes = 0;
    uint16_t count = 0;
  };

  void Clear() {
    slots_.assign(kSlots, {});
    text_.clear();
    ids_.clear();
    used_ = 0;
  }

  std::vector<Slot> slots_;
  std::string text_;
  std::vector<int32_t> ids_;
  size_t used_ = 0;
};

}  // namespace ela::data
