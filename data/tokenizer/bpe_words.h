// The words that byte-pair encoding is trained on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizer/string_map.h"

namespace ela::data {

/// Cuts a text into stretches of one kind: spaces and what follows them, letters of one script,
/// single digits, punctuation with the newlines behind it, tabs, newlines. Invalid bytes and
/// control characters are left out. Merging looks only at pairs inside a word.
class WordCounter {
 public:
  void Add(std::string_view text);

  const StringMap<int64_t>& words() const { return words_; }
  const std::unordered_map<uint32_t, int64_t>& characters() const { return characters_; }

 private:
  StringMap<int64_t> words_;
  std::unordered_map<uint32_t, int64_t> characters_;
};

}  // namespace ela::data
