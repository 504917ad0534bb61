#include "coordinator/cli/screen.h"

#include <algorithm>

#include "coordinator/cli/format.h"

namespace ela::cli {

LiveBlock::~LiveBlock() {
  if (cursor_hidden_) *out_ << "\x1b[?25h" << std::flush;
}

// A terminal that became narrower has broken long lines in two: the block is higher than it was.
std::string LiveBlock::BackToTop(int columns) const {
  int rows = 0;
  for (int width : widths_) {
    rows += columns > 0 && columns < columns_ ? std::max(1, (width + columns - 1) / columns) : 1;
  }
  return rows > 0 ? "\x1b[" + std::to_string(rows) + "A\r" : "";
}

void LiveBlock::Draw(const std::vector<std::string>& lines, int columns) {
  std::string frame = BackToTop(columns);
  const bool resized = columns != columns_ && !widths_.empty();
  if (resized) frame += "\x1b[J";
  if (!cursor_hidden_) frame = "\x1b[?25l" + frame;
  cursor_hidden_ = true;
  std::vector<int> widths;
  for (const std::string& line : lines) {
    frame += line + "\x1b[K\n";
    widths.push_back(DisplayWidth(line));
  }
  if (widths.size() < widths_.size()) frame += "\x1b[J";
  widths_ = std::move(widths);
  columns_ = columns;
  *out_ << frame << std::flush;
}

void LiveBlock::Print(const std::string& text) {
  *out_ << BackToTop(columns_) << "\x1b[J" << text << std::flush;
  widths_.clear();
}

}  // namespace ela::cli
