#include "coordinator/cli/table.h"

#include <algorithm>
#include <utility>

#include "coordinator/cli/format.h"

namespace ela::cli {
namespace {

constexpr int kLeastOfLast = 30;  // columns: some words

}  // namespace

Table::Table(std::vector<std::string> headers) : headers_(std::move(headers)) {
  for (std::string& header : headers_) {
    optional_.push_back(!header.empty() && header[0] == '?');
    if (optional_.back()) header.erase(0, 1);
    right_.push_back(!header.empty() && header[0] == '>');
    if (right_.back()) header.erase(0, 1);
  }
}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(headers_.size());
  for (std::string& cell : cells) cell = cell.empty() ? "-" : cell;
  rows_.push_back(std::move(cells));
}

std::string Table::Render(int columns) const {
  std::vector<int> widths;
  for (size_t c = 0; c < headers_.size(); ++c) {
    int width = DisplayWidth(headers_[c]);
    for (const auto& row : rows_) width = std::max(width, DisplayWidth(row[c]));
    widths.push_back(width);
  }
  std::vector<bool> shown(headers_.size(), true);
  int wanted = std::min(widths.back(), kLeastOfLast);
  for (size_t c = 0; c + 1 < widths.size(); ++c) wanted += widths[c] + 2;
  for (size_t c = widths.size(); columns > 0 && wanted > columns && c-- > 0;) {
    if (!optional_[c]) continue;
    shown[c] = false;
    wanted -= widths[c] + 2;
  }
  std::string text;
  const auto add = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < cells.size(); ++c) {
      if (!shown[c]) continue;
      const std::string padding(widths[c] - DisplayWidth(cells[c]), ' ');
      const std::string cell = right_[c] ? padding + cells[c] : cells[c] + padding;
      line += (c > 0 ? "  " : "") + cell;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    text += (columns > 0 ? FitToWidth(line, columns) : line) + "\n";
  };
  add(headers_);
  for (const auto& row : rows_) add(row);
  return text;
}

}  // namespace ela::cli
