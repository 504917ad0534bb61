#include "proto/job/text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "proto/job/job_file.h"

namespace ela::job {
namespace {

constexpr double kLargestExactInteger = 9007199254740992.0;  // 2^53

// The text without the underscores that separate digits; nothing if one stands elsewhere or it is
// no decimal number.
std::optional<std::string> PlainDecimal(std::string_view text) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      plain.push_back(text[i]);
      continue;
    }
    const bool between = i > 0 && i + 1 < text.size() && absl::ascii_isdigit(text[i - 1]) &&
                         absl::ascii_isdigit(text[i + 1]);
    if (!between) return std::nullopt;
  }
  // from_chars would also take "inf" and "nan".
  if (plain.find_first_not_of("0123456789+-.eE") != std::string::npos) return std::nullopt;
  return plain;
}

template <typename T>
std::optional<T> ReadAll(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

bool IsControl(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7F;
}

// Bytes of the UTF-8 character that starts with `lead`, and the least code point that needs so
// many; 0: none starts so.
std::pair<int, uint32_t> Utf8Length(unsigned char lead) {
  if (lead < 0x80) return {1, 0};
  if (lead >= 0xC2 && lead < 0xE0) return {2, 0x80};
  if (lead >= 0xE0 && lead < 0xF0) return {3, 0x800};
  if (lead >= 0xF0 && lead < 0xF5) return {4, 0x10000};
  return {0, 0};
}

}  // namespace

std::optional<int64_t> ParseInteger(std::string_view text) {
  const std::optional<std::string> plain = PlainDecimal(text);
  if (!plain.has_value()) return std::nullopt;
  if (const auto integer = ReadAll<int64_t>(*plain); integer.has_value()) return integer;
  const auto number = ReadAll<double>(*plain);
  if (!number.has_value() || std::abs(*number) > kLargestExactInteger) return std::nullopt;
  if (std::trunc(*number) != *number) return std::nullopt;
  return static_cast<int64_t>(*number);
}

std::optional<double> ParseNumber(std::string_view text) {
  const std::optional<std::string> plain = PlainDecimal(text);
  return plain.has_value() ? ReadAll<double>(*plain) : std::nullopt;
}

std::optional<size_t> FirstInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const auto [length, least] = Utf8Length(lead);
    if (length == 0 || i + length > text.size()) return i;
    uint32_t code = length == 1 ? lead : lead & (0xFF >> (length + 1));
    for (int k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xC0) != 0x80) return i;
      code = (code << 6) | (next & 0x3F);
    }
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (code < least || code > 0x10FFFF || surrogate) return i;
    i += length;
  }
  return std::nullopt;
}

bool IsPlainText(std::string_view text) {
  return std::none_of(text.begin(), text.end(), IsControl) && !FirstInvalidUtf8(text).has_value();
}

std::string OneLine(std::string_view text) {
  std::string line(text);
  std::replace_if(line.begin(), line.end(), IsControl, '?');
  return line;
}

namespace {

// Milliseconds of one unit, 0 for an unknown one.
int64_t UnitMs(std::string_view unit) {
  if (unit == "ms") return 1;
  if (unit == "s") return 1000;
  if (unit == "m") return 60 * 1000;
  if (unit == "h") return 60 * 60 * 1000;
  if (unit == "d") return 24 * 60 * 60 * 1000;
  return 0;
}

// Edits that turn one word into the other; neighbours swapped count as one edit.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = a[i - 1] == b[j - 1];
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (same ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

absl::StatusOr<int64_t> ParseDurationMs(std::string_view text) {
  const absl::Status error = absl::InvalidArgumentError(StrCat(
      "\"", text.substr(0, 60), "\" is not a duration; write it as 250ms, 90s, 30m, 1h30m or 2d"));
  int64_t total = 0;
  if (text.empty()) return error;
  for (std::string_view rest = text; !rest.empty();) {
    int64_t amount = 0;
    const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), amount);
    if (code != std::errc() || !absl::ascii_isdigit(rest.front())) return error;
    rest.remove_prefix(end - rest.data());
    const size_t letters = std::min(rest.find_first_of("0123456789"), rest.size());
    const int64_t unit = UnitMs(rest.substr(0, letters));
    constexpr int64_t kTenYears = int64_t{10} * 366 * 24 * 60 * 60 * 1000;
    if (unit == 0 || amount > kTenYears / unit) return error;
    total += amount * unit;
    if (total > kTenYears) return error;
    rest.remove_prefix(letters);
  }
  return total;
}

std::string Nearest(std::string_view word, const std::vector<std::string>& known) {
  if (word.empty() || word.size() > 100) return "";
  std::string best;
  // A suggestion further away than a third of the word is no help.
  size_t limit = 1 + std::max<size_t>(1, (word.size() + 1) / 3);
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(word, candidate);
    if (distance >= limit) continue;
    limit = distance;
    best = candidate;
  }
  if (!best.empty() || word.size() < 4) return best;
  // "heads" for num_attention_heads.
  for (const std::string& candidate : known) {
    if (candidate.find(word) != std::string::npos) return candidate;
  }
  return "";
}

}  // namespace ela::job
