// Cuts text into words by a regular expression, as the pre-tokenizers of byte-level BPE do.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ela::data {

/// Every match of the pattern is a word, and so is every stretch between two matches.
class SplitPattern {
 public:
  /// The pattern of GPT-2, which ByteLevel uses by itself.
  static const char* Gpt2();

  virtual ~SplitPattern() = default;
  /// InvalidArgument if it is no regular expression.
  static absl::StatusOr<std::unique_ptr<SplitPattern>> Compile(const std::string& pattern);
  /// Thread-safe. `text` is valid UTF-8; the words add up to it.
  virtual void Split(std::string_view text,
                     const std::function<void(std::string_view word)>& word) const = 0;
};

}  // namespace ela::data
