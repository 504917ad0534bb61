// YAML (and so JSON) text to a small tree with line numbers. Stricter than YAML: one document, no
// anchors, aliases or tags, no key twice, valid UTF-8 without control characters, limited size and
// depth. So a tree is never larger than its text, and no input can make reading it expensive.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::job {

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };

  Kind kind = Kind::kNull;
  int line = 0;         // from 1
  std::string text;     // kScalar
  bool quoted = false;  // kScalar: written in quotes, so it is a string whatever it looks like
  std::vector<std::string> keys;  // kMap, one for each item
  std::vector<int> key_lines;     // kMap
  std::vector<YamlNode> items;    // kSequence and kMap

  /// "a mapping", "a list", "nothing", or the text itself in quotes, for messages.
  std::string Describe() const;
};

inline constexpr size_t kMaxYamlBytes = 1 << 20;
inline constexpr int kMaxYamlDepth = 32;

/// Errors (InvalidArgument) read "file_name:line: what". Text with nothing in it is a kNull node.
absl::StatusOr<YamlNode> ParseYaml(std::string_view text, std::string_view file_name);

}  // namespace ela::job
