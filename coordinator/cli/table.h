// Plain tables: a header in capitals, columns two spaces apart, no lines, so that they read well
// and cut well.
#pragma once

#include <string>
#include <vector>

namespace ela::cli {

class Table {
 public:
  /// A header that starts with '>' is a column that is aligned to the right; '?' before that: one
  /// that may be left out.
  explicit Table(std::vector<std::string> headers);
  void AddRow(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  /// `columns`: the last column is cut to fit, after others made room for some words of it (what
  /// may be left out, from the right); 0: all of everything.
  std::string Render(int columns) const;

 private:
  std::vector<std::string> headers_;
  std::vector<bool> right_, optional_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace ela::cli
