// A block of lines that is redrawn in place below what was printed before.
#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace ela::cli {

/// Draws by one write per frame, each line overwritten and cleared to its end: no flicker. Lines
/// must fit the terminal.
class LiveBlock {
 public:
  explicit LiveBlock(std::ostream* out) : out_(out) {}
  /// Shows the cursor again; the last frame stays.
  ~LiveBlock();
  LiveBlock(const LiveBlock&) = delete;
  LiveBlock& operator=(const LiveBlock&) = delete;

  void Draw(const std::vector<std::string>& lines, int columns);
  /// Prints lines that stay, above the block; the next Draw puts the block below them.
  void Print(const std::string& text);

 private:
  std::string BackToTop(int columns) const;

  std::ostream* out_;
  std::vector<int> widths_;  // of the lines that are on the screen
  int columns_ = 0;          // the terminal's when they were drawn
  bool cursor_hidden_ = false;
};

}  // namespace ela::cli
