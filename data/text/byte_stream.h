// The bytes of an input file, decompressed where it is compressed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "data/text/input_files.h"

namespace ela::data {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  static absl::StatusOr<std::unique_ptr<ByteStream>> Open(const InputFile& file);

  /// Appends `bytes` bytes, or fewer at the end of the file only. Errors name the file.
  virtual absl::Status Read(size_t bytes, std::string* out) = 0;
  /// Passes over `bytes` bytes of text; OutOfRange if there are fewer.
  virtual absl::Status Skip(int64_t bytes) = 0;
  /// Bytes of the file consumed so far, for progress.
  virtual int64_t consumed() const = 0;
};

}  // namespace ela::data
