// A tokenizer.json of byte-level BPE, read and checked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "data/tokenizer/split_pattern.h"
#include "data/tokenizer/string_map.h"

namespace ela::data {

struct ByteLevelBpeModel {
  struct AddedToken {
    std::string text;
    int32_t id = 0;
    bool special = false;
  };
  StringMap<int32_t> vocab;                                 // bytes of a token to its id
  std::vector<std::pair<std::string, std::string>> merges;  // bytes, the first merges first
  bool ignore_merges = false;  // a word that is a token becomes it whatever the merges say
  std::vector<AddedToken> added_tokens;
  std::vector<std::unique_ptr<SplitPattern>> splits;  // each cuts the words of the one before
  int32_t vocab_size = 0;                             // the highest id + 1
  int32_t end_of_document = -1;
};

/// InvalidArgument with what is wrong or not supported.
absl::StatusOr<ByteLevelBpeModel> ParseByteLevelBpe(std::string_view json);

}  // namespace ela::data
