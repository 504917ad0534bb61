// Remembers the ids of words seen before.
#pragma once

#include <xxhash.h>

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ela::data {

/// One thread; 6 MiB and what long words take, at most 16 MiB more. Words of up to 15 bytes, nearly
/// all there are, lie with their ids in one cache line each; longer ones in a table of their own.
class WordCache {
 public:
  /// Ids that may be written behind the last one: `out` needs that much room.
  static constexpr size_t kSlack = 12;

  WordCache() : lines_(std::make_unique<Line[]>(kLines)) {}

  /// Writes the ids of `word` at `out`, from memory or by encode(word, out), and returns their end.
  /// encode may write at most one id a byte. `word` lies in a text that can be read to `text_end`.
  template <typename Encode>
  int32_t* Append(std::string_view word, const char* text_end, const Encode& encode, int32_t* out) {
    if (word.size() > kShortBytes) return AppendLong(word, encode, out);
    const Key key = KeyOf(word, text_end);
    const size_t at = Hash(key);
    for (Line* line : {&lines_[at], &lines_[at ^ 1]}) {
      if (line->key != key) continue;
      std::memcpy(out, line->ids.data(), 4 * sizeof(int32_t));
      if (line->count > 4) std::memcpy(out + 4, line->ids.data() + 4, 7 * sizeof(int32_t));
      return out + line->count;
    }
    int32_t* const end = encode(word, out);
    const auto count = static_cast<size_t>(end - out);
    if (count <= kLineIds) {
      // The line that came first moves to the second place of its pair.
      lines_[at ^ 1] = lines_[at];
      lines_[at].key = key;
      lines_[at].count = static_cast<int32_t>(count);
      std::memcpy(lines_[at].ids.data(), out, count * sizeof(int32_t));
    }
    return end;
  }

 private:
  static constexpr size_t kShortBytes = 15;
  static constexpr size_t kLineIds = 11;
  static constexpr int kLineBits = 16;
  static constexpr size_t kLines = size_t{1} << kLineBits;
  static constexpr size_t kLongBytes = 256;
  static constexpr int kLongBits = 15;

  struct Key {
    uint64_t low = 0;   // of the bytes of the word, zeros behind them
    uint64_t high = 0;  // and its length in the highest byte, which is never 0
    bool operator==(const Key&) const = default;
  };
  struct alignas(64) Line {
    Key key;
    int32_t count = 0;
    std::array<int32_t, kLineIds> ids;
  };
  struct LongWord {
    uint64_t hash = 0;  // 0: free
    std::string text;
    std::vector<int32_t> ids;
  };

  static Key KeyOf(std::string_view word, const char* text_end) {
    static_assert(std::endian::native == std::endian::little);
    uint64_t halves[2] = {0, 0};
    const size_t n = word.size();
    if (text_end - word.data() >= 16) {
      std::memcpy(halves, word.data(), 16);
      if (n <= 8) {
        halves[0] = n == 8 ? halves[0] : halves[0] & ((uint64_t{1} << (8 * n)) - 1);
        halves[1] = 0;
      } else {
        halves[1] &= (uint64_t{1} << (8 * (n - 8))) - 1;
      }
    } else {
      std::memcpy(halves, word.data(), n);
    }
    return {halves[0], halves[1] | static_cast<uint64_t>(n) << 56};
  }

  static size_t Hash(const Key& key) {
    const uint64_t mixed = key.low * 0x9e3779b97f4a7c15u ^ std::rotl(key.high, 29);
    return static_cast<size_t>((mixed * 0xbf58476d1ce4e5b9u) >> (64 - kLineBits));
  }

  template <typename Encode>
  int32_t* AppendLong(std::string_view word, const Encode& encode, int32_t* out) {
    if (word.size() > kLongBytes) return encode(word, out);
    if (long_words_.empty()) long_words_.resize(size_t{1} << kLongBits);
    const uint64_t hash = XXH3_64bits(word.data(), word.size()) | 1;
    LongWord& slot = long_words_[hash >> (64 - kLongBits)];
    if (slot.hash == hash && slot.text == word) {
      std::memcpy(out, slot.ids.data(), slot.ids.size() * sizeof(int32_t));
      return out + slot.ids.size();
    }
    int32_t* const end = encode(word, out);
    slot.hash = hash;
    slot.text.assign(word);
    slot.ids.assign(out, end);
    return end;
  }

  std::unique_ptr<Line[]> lines_;
  std::vector<LongWord> long_words_;
};

}  // namespace ela::data
