#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/export/safetensors.h"
#include "checkpoints/kv/files.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kAlignment = 8;

// The data's hash is known when all of it is written; until then zeros hold its place.
std::string HeaderText(std::vector<SafetensorsEntry>* tensors,
                       std::map<std::string, std::string> metadata, int64_t* data_bytes) {
  using nlohmann::json;
  metadata[kSafetensorsHashKey] = HexOf(0);
  std::string text = absl::StrCat("{\"__metadata__\":", json(metadata).dump());
  for (SafetensorsEntry& entry : *tensors) {
    entry.begin = *data_bytes;
    *data_bytes += entry.numel() * SafetensorsElementBytes(entry.dtype);
    entry.end = *data_bytes;
    absl::StrAppend(&text, ",", json(entry.name).dump(), ":{\"dtype\":", json(entry.dtype).dump(),
                    ",\"shape\":", json(entry.shape).dump(), ",\"data_offsets\":[", entry.begin,
                    ",", entry.end, "]}");
  }
  text.push_back('}');
  text.resize(
      (kLengthBytes + text.size() + kAlignment - 1) / kAlignment * kAlignment - kLengthBytes, ' ');
  return text;
}

}  // namespace

std::string HexOf(uint64_t value) { return absl::StrCat(absl::Hex(value, absl::kZeroPad16)); }

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, std::vector<SafetensorsEntry> tensors,
    const std::map<std::string, std::string>& metadata) {
  int64_t data_bytes = 0;
  const std::string text = HeaderText(&tensors, metadata, &data_bytes);
  const std::string temporary = absl::StrCat(path, ".tmp.", ::getpid());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return kv::ErrnoStatus(errno, "create", temporary);
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(path, temporary, fd, data_bytes));
  const uint64_t length = text.size();
  const std::string mark = absl::StrCat("\"", kSafetensorsHashKey, "\":\"");
  writer->hash_offset_ = kLengthBytes + static_cast<int64_t>(text.find(mark) + mark.size());
  ELA_RETURN_IF_ERROR(writer->WriteBytes(reinterpret_cast<const char*>(&length), kLengthBytes));
  ELA_RETURN_IF_ERROR(writer->WriteBytes(text.data(), static_cast<int64_t>(text.size())));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

absl::Status SafetensorsWriter::WriteBytes(const char* data, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, data, static_cast<size_t>(bytes));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return kv::ErrnoStatus(errno, "write", path_);
    data += written;
    bytes -= written;
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Append(const void* data, int64_t bytes) {
  if (bytes > missing_) {
    return absl::FailedPreconditionError(
        absl::StrCat("more data than the tensors of ", path_, " take"));
  }
  ELA_RETURN_IF_ERROR(WriteBytes(static_cast<const char*>(data), bytes));
  hash_.Update(data, static_cast<size_t>(bytes));
  missing_ -= bytes;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  if (missing_ != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(missing_, " bytes of the tensors of ", path_, " have not come"));
  }
  const std::string hash = HexOf(hash_.Digest());
  if (::pwrite(fd_, hash.data(), hash.size(), hash_offset_) != static_cast<ssize_t>(hash.size())) {
    return kv::ErrnoStatus(errno, "write", path_);
  }
  if (::fsync(fd_) != 0) return kv::ErrnoStatus(errno, "sync", temporary_);
  ELA_RETURN_IF_ERROR(kv::RenameDurably(temporary_, path_));
  ::close(fd_);
  fd_ = -1;
  return absl::OkStatus();
}

}  // namespace ela::checkpoints
