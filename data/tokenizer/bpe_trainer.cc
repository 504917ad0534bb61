#include "data/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "data/tokenizer/bpe_words.h"
#include "data/tokenizer/string_map.h"
#include "data/tokenizer/utf8.h"

namespace ela::data {
namespace {

constexpr int kMaxCharacters = 16;    // of a piece
constexpr double kCoverage = 0.9995;  // of the text by characters
constexpr int32_t kUncovered = -1;    // a character left to bytes: merges with nothing

class Trainer {
 public:
  void AddCharacters(const std::unordered_map<uint32_t, int64_t>& counts);
  void AddWords(const StringMap<int64_t>& words);
  /// False if no pair is left.
  bool MergeMostFrequent();
  TrainedBpe Take();
  int64_t pieces() const { return static_cast<int64_t>(pieces_.size()); }

 private:
  struct Piece {
    std::string text;
    int characters = 0;
  };
  struct Word {
    std::vector<int32_t> pieces;
    int64_t count = 0;
  };
  struct Pair {
    int64_t count = 0;
    std::vector<int32_t> words;  // that hold it, or held it
    bool may_merge = false;
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    bool operator<(const Candidate& other) const {  // the greatest merges first
      return count != other.count ? count < other.count : key > other.key;
    }
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  bool MayMerge(int32_t left, int32_t right) const;
  void Count(int32_t word, int64_t sign, std::vector<uint64_t>* touched);
  void Push(uint64_t key);
  void Apply(uint64_t key, int32_t merged);

  std::vector<Piece> pieces_;  // characters, then merged ones
  StringMap<int32_t> by_text_;
  size_t characters_ = 0;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Pair> pairs_;
  std::priority_queue<Candidate> candidates_;
};

void Trainer::AddCharacters(const std::unordered_map<uint32_t, int64_t>& counts) {
  std::vector<std::pair<uint32_t, int64_t>> sorted(counts.begin(), counts.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  int64_t total = 0;
  for (const auto& [c, count] : sorted) total += count;
  const double wanted = kCoverage * static_cast<double>(total);
  int64_t covered = 0;
  for (const auto& [c, count] : sorted) {
    if (c >= 0x80 && static_cast<double>(covered) >= wanted) continue;
    covered += count;
    const std::string text = EncodeUtf8(c);
    by_text_.emplace(text, static_cast<int32_t>(pieces_.size()));
    pieces_.push_back({text, 1});
  }
  characters_ = pieces_.size();
}

void Trainer::AddWords(const StringMap<int64_t>& words) {
  words_.reserve(words.size());
  for (const auto& [text, count] : words) {
    Word word;
    word.count = count;
    for (size_t i = 0; i < text.size();) {
      const Utf8Char c = DecodeUtf8(text.data() + i, text.size() - i);
      const auto bytes = static_cast<size_t>(c.bytes);
      const auto found = by_text_.find(std::string_view(text).substr(i, bytes));
      word.pieces.push_back(found == by_text_.end() ? kUncovered : found->second);
      i += bytes;
    }
    if (word.pieces.size() > 1) words_.push_back(std::move(word));
  }
  std::vector<uint64_t> touched;
  for (size_t w = 0; w < words_.size(); ++w) Count(static_cast<int32_t>(w), 1, &touched);
  for (const auto& [key, pair] : pairs_) Push(key);
}

// Spaces: a run of them, or one before something else. A digit is a piece of its own.
bool Trainer::MayMerge(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return false;
  const Piece& a = pieces_[left];
  const Piece& b = pieces_[right];
  if (a.characters + b.characters > kMaxCharacters) return false;
  const char first = b.text[0];
  if (first >= '0' && first <= '9') return false;
  const bool spaces_before = a.text.back() == ' ';
  if (first == ' ') return spaces_before;
  return !spaces_before || a.text.size() == 1;
}

void Trainer::Count(int32_t word, int64_t sign, std::vector<uint64_t>* touched) {
  const std::vector<int32_t>& pieces = words_[word].pieces;
  for (size_t i = 0; i + 1 < pieces.size(); ++i) {
    const uint64_t key = Key(pieces[i], pieces[i + 1]);
    const auto [entry, added] = pairs_.try_emplace(key);
    Pair& pair = entry->second;
    if (added) pair.may_merge = MayMerge(pieces[i], pieces[i + 1]);
    if (!pair.may_merge) continue;
    pair.count += sign * words_[word].count;
    if (sign > 0 && (pair.words.empty() || pair.words.back() != word)) pair.words.push_back(word);
    touched->push_back(key);
  }
}

void Trainer::Push(uint64_t key) {
  const Pair& pair = pairs_.at(key);
  if (pair.may_merge && pair.count > 0) candidates_.push({pair.count, key});
}

void Trainer::Apply(uint64_t key, int32_t merged) {
  const auto left = static_cast<int32_t>(key >> 32);
  const auto right = static_cast<int32_t>(key & 0xFFFFFFFF);
  const std::vector<int32_t> words = std::move(pairs_.at(key).words);
  std::vector<uint64_t> touched;
  for (const int32_t w : words) {
    std::vector<int32_t>& pieces = words_[w].pieces;
    bool holds = false;
    for (size_t i = 0; i + 1 < pieces.size() && !holds; ++i) {
      holds = pieces[i] == left && pieces[i + 1] == right;
    }
    if (!holds) continue;
    Count(w, -1, &touched);
    size_t kept = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      const bool here = i + 1 < pieces.size() && pieces[i] == left && pieces[i + 1] == right;
      pieces[kept++] = here ? merged : pieces[i];
      i += here;
    }
    pieces.resize(kept);
    Count(w, 1, &touched);
  }
  pairs_.erase(key);
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  for (const uint64_t pair : touched) {
    if (pair != key) Push(pair);
  }
}

bool Trainer::MergeMostFrequent() {
  while (!candidates_.empty()) {
    const Candidate best = candidates_.top();
    candidates_.pop();
    const auto found = pairs_.find(best.key);
    // Counts changed since: the pair was pushed again with the new one.
    if (found == pairs_.end() || found->second.count != best.count) continue;
    const std::string text = pieces_[best.key >> 32].text + pieces_[best.key & 0xFFFFFFFF].text;
    const int characters =
        pieces_[best.key >> 32].characters + pieces_[best.key & 0xFFFFFFFF].characters;
    const auto [entry, added] = by_text_.try_emplace(text, static_cast<int32_t>(pieces_.size()));
    if (added) pieces_.push_back({text, characters});
    Apply(best.key, entry->second);
    if (added) return true;
  }
  return false;
}

TrainedBpe Trainer::Take() {
  TrainedBpe out;
  for (size_t p = 0; p < pieces_.size(); ++p) {
    (p < characters_ ? out.characters : out.merged).push_back(std::move(pieces_[p].text));
  }
  return out;
}

}  // namespace

absl::StatusOr<TrainedBpe> TrainBpe(const std::vector<std::string>& texts, int64_t pieces) {
  WordCounter counter;
  for (const std::string& text : texts) counter.Add(text);
  Trainer trainer;
  trainer.AddCharacters(counter.characters());
  if (trainer.pieces() > pieces) {
    return absl::InvalidArgumentError(
        absl::StrCat("too small: the characters alone need ", trainer.pieces() - pieces, " more"));
  }
  trainer.AddWords(counter.words());
  while (trainer.pieces() < pieces) {
    if (!trainer.MergeMostFrequent()) {
      return absl::InvalidArgumentError(absl::StrCat("too large: the text gives ",
                                                     pieces - trainer.pieces(),
                                                     " pieces fewer; give more text"));
    }
  }
  return trainer.Take();
}

}  // namespace ela::data
