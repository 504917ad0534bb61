// Small readers of text: numbers, UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace ela::job {

// Where a distribution builds Abseil as C++14, its string_view is not the standard one and StrCat
// does not take that.
template <typename T>
const T& ForStrCat(const T& value) {
  return value;
}
inline absl::string_view ForStrCat(const std::string_view& value) {
  return {value.data(), value.size()};
}
/// absl::StrCat that takes std::string_view everywhere.
template <typename... Args>
std::string StrCat(const Args&... args) {
  return absl::StrCat(ForStrCat(args)...);
}

/// "12", "-3", "1_000", "1e6", "2.0": an integer written in any way that is exact; nothing
/// otherwise.
std::optional<int64_t> ParseInteger(std::string_view text);

/// A finite number, "1_000.5" included; nothing otherwise.
std::optional<double> ParseNumber(std::string_view text);

/// Offset of the first byte that is not valid UTF-8 (overlong forms and surrogates are not).
std::optional<size_t> FirstInvalidUtf8(std::string_view text);

/// Valid UTF-8 without control characters.
bool IsPlainText(std::string_view text);

/// The text with control characters replaced by "?", so that a message that quotes it stays one line.
std::string OneLine(std::string_view text);

}  // namespace ela::job
