#include "checkpoints/cli/text.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace ela::checkpoints {
namespace {

std::string Pad(const std::string& text, size_t width, bool right) {
  const std::string space(width - std::min(width, text.size()), ' ');
  return right ? space + text : text + space;
}

}  // namespace

std::string Isoformat(int64_t unix_ms) {
  if (unix_ms == 0) return "";
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixMillis(unix_ms), absl::UTCTimeZone());
}

std::string RenderTable(const std::vector<std::string>& headers,
                        const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::vector<std::string>> lines = {headers};
  std::vector<bool> right;
  for (std::string& header : lines[0]) {
    right.push_back(header.starts_with('>'));
    if (right.back()) header.erase(0, 1);
  }
  lines.insert(lines.end(), rows.begin(), rows.end());
  std::vector<size_t> widths(headers.size(), 0);
  for (const auto& line : lines) {
    for (size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : lines) {
    std::string row;
    for (size_t i = 0; i < widths.size(); ++i) {
      if (i > 0) row += "  ";
      row += Pad(line[i], widths[i], right[i]);
    }
    row.erase(row.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, row, "\n");
  }
  return text;
}

std::string RenderPairs(const std::vector<std::pair<std::string, std::string>>& pairs) {
  size_t width = 0;
  for (const auto& [key, value] : pairs) width = std::max(width, key.size());
  std::string text;
  for (const auto& [key, value] : pairs) {
    absl::StrAppend(&text, Pad(key, width, false), "  ", value, "\n");
  }
  return text;
}

}  // namespace ela::checkpoints
