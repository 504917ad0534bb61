// The safetensors container: u64 little-endian length of the header, the header as JSON, the
// tensors back to back. What PyTorch and others exchange weights in.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/xxh3.h"

namespace ela::checkpoints {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "F64", "F16", "BF16", "I64", ...
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes, counted from the end of the header

  int64_t numel() const;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // by offset
  std::map<std::string, std::string> metadata;
};

/// The writer's own entry of the metadata: XXH3 of all the data, as 16 hexadecimal digits.
inline constexpr char kSafetensorsHashKey[] = "ela.xxh3";
std::string HexOf(uint64_t value);

/// Bytes of an element; 0: no such dtype.
int64_t SafetensorsElementBytes(std::string_view dtype);

/// InvalidArgument, with the tensor and the file at `path`, unless its elements are F64, F32, F16
/// or BF16.
absl::Status CheckFloating(const SafetensorsEntry& entry, const std::string& path);

/// Checks everything: types, dtypes, that shapes and offsets agree, and that the tensors fill
/// `data_bytes` without gap or overlap. InvalidArgument says what is wrong; `what` names the file.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, int64_t data_bytes,
                                                         const std::string& what);

class SafetensorsFile {
 public:
  /// NotFound; InvalidArgument: no safetensors file, or a damaged one.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const SafetensorsEntry* Find(const std::string& name) const;  // null: none

  /// Elements [begin, end) of a tensor as floats; F64, F16 and BF16 are converted. NotFound,
  /// InvalidArgument (outside, or not a floating dtype). Thread-safe.
  absl::Status Read(const std::string& name, int64_t begin, int64_t end, float* out) const;
  /// DataLoss if the file has a hash of its data and that is another.
  absl::Status CheckHash() const;

 private:
  SafetensorsFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status ReadHeader();
  absl::Status ReadBytes(int64_t offset, int64_t bytes, void* out) const;

  const std::string path_;
  const int fd_;
  int64_t data_begin_ = 0;
  SafetensorsHeader header_;
  std::map<std::string, size_t> index_;
};

/// Writes through a temporary file beside `path`: the file is whole or absent.
class SafetensorsWriter {
 public:
  /// `tensors`: name, dtype and shape, in the order in which their data will come.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, std::vector<SafetensorsEntry> tensors,
      const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// The next bytes of the data, across tensors. ResourceExhausted: disk full.
  absl::Status Append(const void* data, int64_t bytes);
  /// Durable when it returns OK. FailedPrecondition: not all data has come.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, std::string temporary, int fd, int64_t data_bytes)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd), missing_(data_bytes) {}
  absl::Status WriteBytes(const char* data, int64_t bytes);

  const std::string path_, temporary_;
  int fd_;
  int64_t missing_;          // bytes of data still to come
  int64_t hash_offset_ = 0;  // in the file
  Xxh3Stream hash_;
};

}  // namespace ela::checkpoints
