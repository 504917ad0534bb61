#include "coordinator/cli/curve.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "coordinator/cli/format.h"

namespace ela::cli {
namespace {

std::string Repeat(std::string_view piece, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += piece;
  return text;
}

std::string PadLeft(const std::string& text, int width) {
  return std::string(std::max(0, width - DisplayWidth(text)), ' ') + text;
}

// A grid of dots, packed into characters.
class Canvas {
 public:
  Canvas(int columns, int rows, bool unicode)
      : columns_(columns), rows_(rows), unicode_(unicode), cells_(columns * rows) {}

  int dots_across() const { return columns_ * (unicode_ ? 2 : 1); }
  int dots_down() const { return rows_ * (unicode_ ? 4 : 1); }

  void Set(int x, int y) {
    // Braille numbers its dots down the left column, down the right one, then the bottom row.
    static constexpr uint8_t kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    const int column = unicode_ ? x / 2 : x;
    const int row = unicode_ ? y / 4 : y;
    cells_[row * columns_ + column] |= unicode_ ? kBits[y % 4][x % 2] : 1;
  }

  std::string Row(int row) const {
    std::string text;
    for (int c = 0; c < columns_; ++c) {
      const uint8_t dots = cells_[row * columns_ + c];
      if (dots == 0) {
        text += ' ';
      } else if (!unicode_) {
        text += '*';
      } else {  // U+2800 + dots, in UTF-8
        text += '\xe2';
        text += static_cast<char>(0xA0 | (dots >> 6));
        text += static_cast<char>(0x80 | (dots & 0x3F));
      }
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return text;
  }

 private:
  int columns_, rows_;
  bool unicode_;
  std::vector<uint8_t> cells_;
};

struct Range {
  double low, high;
};

// Mean of the points of each column of dots; NaN where a column has none.
std::vector<double> ColumnMeans(const std::vector<CurvePoint>& points, Range steps, int columns) {
  std::vector<double> sums(columns), counts(columns);
  const double span = steps.high - steps.low;
  for (const CurvePoint& point : points) {
    const double share = span > 0 ? (point.step - steps.low) / span : 0;
    const int column =
        std::clamp(static_cast<int>(std::lround(share * (columns - 1))), 0, columns - 1);
    sums[column] += point.value;
    counts[column] += 1;
  }
  for (int c = 0; c < columns; ++c) sums[c] /= counts[c];
  return sums;
}

Range RangeOf(const std::vector<double>& values) {
  Range range{INFINITY, -INFINITY};
  for (double value : values) {
    if (std::isnan(value)) continue;
    range.low = std::min(range.low, value);
    range.high = std::max(range.high, value);
  }
  // A flat curve runs through the middle.
  const double least = std::max(1e-6, 1e-3 * std::abs(range.high));
  if (range.high - range.low < least) return {range.low - least, range.high + least};
  return range;
}

// Joins neighbouring columns by straight lines, gaps included.
void Plot(const std::vector<double>& values, Range range, Canvas* canvas) {
  const int last_row = canvas->dots_down() - 1;
  const auto row_of = [&](double value) {
    const double share = (value - range.low) / (range.high - range.low);
    return std::clamp(static_cast<int>(std::lround((1 - share) * last_row)), 0, last_row);
  };
  int previous = -1;
  for (int x = 0; x < canvas->dots_across(); ++x) {
    if (std::isnan(values[x])) continue;
    const int y = row_of(values[x]);
    canvas->Set(x, y);
    const int from = previous < 0 ? x : previous;
    const int start = row_of(values[from]);
    int reached = start;
    for (int between = from + 1; between <= x; ++between) {
      const double share = static_cast<double>(between - from) / (x - from);
      const int next = static_cast<int>(std::lround(start + share * (y - start)));
      for (int dot = std::min(reached, next); dot <= std::max(reached, next); ++dot) {
        // The vertical part of a step belongs to the later column, but for its first dot.
        if (dot != reached || reached == next) canvas->Set(between, dot);
      }
      reached = next;
    }
    previous = x;
  }
}

// "first ... last" under the axis.
std::string StepLabels(Range steps, int width) {
  const std::string low = FormatCount(static_cast<int64_t>(steps.low));
  const std::string high = FormatCount(static_cast<int64_t>(steps.high));
  const std::string title = "step";
  const int free = width - static_cast<int>(low.size() + high.size());
  if (free < 1) return PadLeft(high, std::min<int>(width, high.size()));
  if (free < static_cast<int>(title.size()) + 2) return low + std::string(free, ' ') + high;
  const int left = (free - static_cast<int>(title.size())) / 2;
  const int right = free - static_cast<int>(title.size()) - left;
  return low + std::string(left, ' ') + title + std::string(right, ' ') + high;
}

}  // namespace

std::string ProgressBar(double share, int width, bool unicode) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  if (!(share > 0)) share = 0;
  share = std::min(share, 1.0);
  const int inner = width - 2;
  if (inner < 1) return "";
  const int eighths = static_cast<int>(share * inner * 8);
  const int full = eighths / 8;
  if (!unicode) return absl::StrCat("[", Repeat("#", full), Repeat(".", inner - full), "]");
  const std::string part = kEighths[eighths % 8];
  return absl::StrCat("▕", Repeat("█", full), part,
                      Repeat(" ", inner - full - (part.empty() ? 0 : 1)), "▏");
}

std::vector<std::string> DrawCurve(const std::vector<CurvePoint>& all, int width, int height,
                                   bool unicode) {
  std::vector<CurvePoint> points;
  for (const CurvePoint& point : all) {
    if (std::isfinite(point.value)) points.push_back(point);
  }
  constexpr int kAxis = 2;  // the axis itself and a space before it
  if (points.empty() || height < 4) return {};
  // Labels come from the drawn range, whose width depends on theirs: the widest that can come is
  // reserved.
  const auto label = [](double value) { return FormatSignificant(value, 4); };
  int label_width = 0;
  for (const CurvePoint& point : points) {
    label_width = std::max(label_width, DisplayWidth(label(point.value)));
  }
  const int columns = width - label_width - kAxis;
  if (columns < 8) return {};

  Canvas canvas(columns, height - 2, unicode);
  const auto [first, last] =
      std::minmax_element(points.begin(), points.end(),
                          [](const CurvePoint& a, const CurvePoint& b) { return a.step < b.step; });
  const Range steps{first->step, last->step};
  const std::vector<double> means = ColumnMeans(points, steps, canvas.dots_across());
  const Range values = RangeOf(means);
  Plot(means, values, &canvas);

  std::vector<std::string> lines;
  const int rows = height - 2;
  for (int row = 0; row < rows; ++row) {
    const bool labelled = row == 0 || row == rows - 1 || (rows >= 7 && row == rows / 2);
    const double value = values.high - (values.high - values.low) * row / std::max(1, rows - 1);
    const std::string text = labelled ? label(value).substr(0, label_width) : "";
    const char* axis = unicode ? (labelled ? " ┤" : " │") : (labelled ? " +" : " |");
    lines.push_back(PadLeft(text, label_width) + axis + canvas.Row(row));
  }
  lines.push_back(std::string(label_width + 1, ' ') + (unicode ? "└" : "+") +
                  Repeat(unicode ? "─" : "-", columns));
  lines.push_back(std::string(label_width + kAxis, ' ') + StepLabels(steps, columns));
  return lines;
}

}  // namespace ela::cli
