// Plain tables: a header in capitals, columns two spaces apart, no lines, so that they read well
// and cut well.
#pragma once

#include <string>
#include <vector>

namespace ela::cli {

class Table {
 public:
  /// A header that starts with '>' is a column that is aligned to the right.
  explicit Table(std::vector<std::string> headers);
  void AddRow(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  /// `columns`: the last column is cut to fit; 0: never cut.
  std::string Render(int columns) const;

 private:
  std::vector<std::string> headers_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace ela::cli
