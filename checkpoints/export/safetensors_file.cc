#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/export/safetensors.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/xxh3.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // what other readers of the format accept

float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

float FromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31, exponent = bits >> 10 & 31u,
                 mantissa = bits & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
  return sign != 0 ? -tiny : tiny;
}

/// Of a floating dtype other than F32.
void ToFloats(std::string_view dtype, const std::vector<char>& bytes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == "F64") {
      double value;
      std::memcpy(&value, bytes.data() + i * 8, 8);
      out[i] = static_cast<float>(value);
    } else {
      uint16_t bits;
      std::memcpy(&bits, bytes.data() + i * 2, 2);
      out[i] = dtype == "F16" ? FromF16(bits) : FromBf16(bits);
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return kv::ErrnoStatus(errno, "open", path);
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, fd));
  ELA_RETURN_IF_ERROR(file->ReadHeader());
  return file;
}

SafetensorsFile::~SafetensorsFile() { ::close(fd_); }

absl::Status SafetensorsFile::ReadHeader() {
  struct stat info;
  if (::fstat(fd_, &info) != 0) return kv::ErrnoStatus(errno, "look at", path_);
  const int64_t size = info.st_size;
  uint64_t length = 0;
  if (!S_ISREG(info.st_mode) || size < kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " is no safetensors file: too short"));
  }
  ELA_RETURN_IF_ERROR(ReadBytes(0, kLengthBytes, &length));
  if (length > static_cast<uint64_t>(std::min(size - kLengthBytes, kMaxHeaderBytes))) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " is no safetensors file: a header of ",
                                                   length, " bytes does not fit in it"));
  }
  std::string text(length, '\0');
  ELA_RETURN_IF_ERROR(ReadBytes(kLengthBytes, static_cast<int64_t>(length), text.data()));
  data_begin_ = kLengthBytes + static_cast<int64_t>(length);
  ELA_ASSIGN_OR_RETURN(header_, ParseSafetensorsHeader(text, size - data_begin_, path_));
  for (size_t i = 0; i < header_.tensors.size(); ++i) index_[header_.tensors[i].name] = i;
  return absl::OkStatus();
}

absl::Status SafetensorsFile::ReadBytes(int64_t offset, int64_t bytes, void* out) const {
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, to, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return kv::ErrnoStatus(errno, "read", path_);
    if (got == 0) return absl::DataLossError(absl::StrCat(path_, " was cut while it was read"));
    to += got;
    offset += got;
    bytes -= got;
  }
  return absl::OkStatus();
}

const SafetensorsEntry* SafetensorsFile::Find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &header_.tensors[it->second];
}

absl::Status SafetensorsFile::Read(const std::string& name, int64_t begin, int64_t end,
                                   float* out) const {
  const SafetensorsEntry* entry = Find(name);
  if (entry == nullptr) return absl::NotFoundError(absl::StrCat(path_, " has no tensor ", name));
  ELA_RETURN_IF_ERROR(CheckFloating(*entry, path_));
  const int64_t numel = entry->numel();
  if (begin < 0 || end < begin || end > numel) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has elements [0, ", numel,
                                                   "): [", begin, ", ", end, ") is not within"));
  }
  const int64_t size = SafetensorsElementBytes(entry->dtype);
  const int64_t offset = data_begin_ + entry->begin;
  if (entry->dtype == "F32") {
    return ReadBytes(offset + begin * size, (end - begin) * size, out);
  }
  std::vector<char> buffer;
  constexpr int64_t kAtOnce = 1 << 20;
  for (int64_t at = begin; at < end; at += kAtOnce) {
    const int64_t count = std::min(kAtOnce, end - at);
    buffer.resize(static_cast<size_t>(count * size));
    ELA_RETURN_IF_ERROR(ReadBytes(offset + at * size, count * size, buffer.data()));
    ToFloats(entry->dtype, buffer, count, out + (at - begin));
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFile::CheckHash() const {
  const auto expected = metadata().find(kSafetensorsHashKey);
  if (expected == metadata().end()) return absl::OkStatus();
  Xxh3Stream hash;
  std::vector<char> buffer(size_t{1} << 20);
  const int64_t end = data_begin_ + (tensors().empty() ? 0 : tensors().back().end);
  for (int64_t at = data_begin_; at < end; at += static_cast<int64_t>(buffer.size())) {
    const int64_t bytes = std::min(static_cast<int64_t>(buffer.size()), end - at);
    ELA_RETURN_IF_ERROR(ReadBytes(at, bytes, buffer.data()));
    hash.Update(buffer.data(), static_cast<size_t>(bytes));
  }
  if (HexOf(hash.Digest()) == expected->second) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path_, " is damaged: its checksum does not match"));
}

}  // namespace ela::checkpoints
