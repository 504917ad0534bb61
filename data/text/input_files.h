// The files that the paths on a command line mean.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::data {

enum class TextFormat {
  kText,       // a file is a document
  kJsonLines,  // a line is a JSON object, whose "text" is a document
};

struct InputFile {
  std::string path;
  TextFormat format = TextFormat::kText;
  bool zstd = false;
  bool regular = true;  // false: a pipe, which can be read once
  int64_t bytes = 0;    // on disk
  int64_t modified_ns = 0;
};

enum class FormatChoice { kAuto, kText, kJsonLines };

/// Something a user should know that stops nothing, in one line.
using Notice = std::function<void(const std::string&)>;

/// Files in the order of `paths`; folders recursively, sorted by name, without hidden entries
/// (.git and the like), and with a notice for what cannot be read. By kAuto .jsonl and .ndjson are
/// JSON lines and all else is text; a further .zst means compressed. NotFound for a path that does
/// not exist; InvalidArgument if there is no file at all.
absl::StatusOr<std::vector<InputFile>> ListInputs(const std::vector<std::string>& paths,
                                                  FormatChoice format, const Notice& notice);

}  // namespace ela::data
