// A whole file mapped for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ela::data {

/// Move-only. The file must not shrink while it is mapped: sealed files never change, a rebuild
/// replaces them by rename.
class MappedFile {
 public:
  /// NotFound if there is no such file, InvalidArgument if it is not a regular one, Unavailable on
  /// an I/O error.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept { *this = static_cast<MappedFile&&>(other); }
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const char* data() const { return data_; }
  int64_t size() const { return size_; }  // bytes
  std::string_view view() const { return {data_, static_cast<size_t>(size_)}; }

 private:
  const char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace ela::data
