#include "data/shards/shard_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr char kPartial[] = ".partial";

absl::Status IoError(const std::string& path, const char* what) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot ", what, ": ", std::strerror(errno)));
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return IoError(path, "write");
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> CreateFile(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd >= 0) return fd;
  if (errno == ENOENT || errno == ENOTDIR) {
    return absl::NotFoundError(absl::StrCat(path, ": its folder does not exist; create it first"));
  }
  return IoError(path, "create");
}

absl::Status SyncAndClose(int fd, const std::string& path) {
  const bool synced = fsync(fd) == 0;
  if (close(fd) != 0 || !synced) return IoError(path, "sync");
  return absl::OkStatus();
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return IoError(to, "rename to");
  return absl::OkStatus();
}

absl::Status SyncFolderOf(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty()) folder = ".";
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return IoError(folder, "open");
  return SyncAndClose(fd, folder);
}

absl::Status WriteSynced(const std::string& path, std::string_view bytes) {
  ELA_ASSIGN_OR_RETURN(const int fd, CreateFile(path));
  const absl::Status written = WriteAll(fd, bytes, path);
  const absl::Status synced = SyncAndClose(fd, path);
  return written.ok() ? synced : written;
}

template <typename T>
void AppendRaw(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

}  // namespace

absl::Status WriteFileSealed(const std::string& path, std::string_view bytes) {
  ELA_RETURN_IF_ERROR(WriteSynced(path + kPartial, bytes));
  ELA_RETURN_IF_ERROR(Rename(path + kPartial, path));
  return SyncFolderOf(path);
}

absl::StatusOr<std::unique_ptr<ShardWriter>> ShardWriter::Create(
    const ShardWriterOptions& options) {
  const std::string idx = options.prefix + ".idx";
  if (!options.replace && access(idx.c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat(idx, ": a corpus of this name exists; choose another, or replace it"));
  }
  std::unique_ptr<ShardWriter> writer(new ShardWriter(options));
  writer->type_ = TypeForVocab(options.vocab_size);
  ELA_ASSIGN_OR_RETURN(writer->bin_fd_, CreateFile(options.prefix + ".bin" + kPartial));
  return writer;
}

ShardWriter::~ShardWriter() {
  if (bin_fd_ >= 0) close(bin_fd_);
  if (sealed_) return;
  for (const char* suffix : {".bin", ".json", ".idx"}) {
    unlink((options_.prefix + suffix + kPartial).c_str());
  }
}

absl::Status ShardWriter::Add(const std::vector<int32_t>& ids, int64_t text_bytes) {
  if (ids.size() > size_t{INT32_MAX}) {
    return absl::InvalidArgumentError(
        absl::StrCat("a document of ", ids.size(), " tokens is too long for the index; split it"));
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= options_.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " outside [0, ", options_.vocab_size, ")"));
    }
    if (type_ == TokenType::kU16) {
      AppendRaw(static_cast<uint16_t>(id), &buffer_);
    } else {
      AppendRaw(id, &buffer_);
    }
  }
  lengths_.push_back(static_cast<int32_t>(ids.size()));
  tokens_ += static_cast<int64_t>(ids.size());
  text_bytes_ += text_bytes;
  return buffer_.size() >= kBufferBytes ? Flush() : absl::OkStatus();
}

absl::Status ShardWriter::Flush() {
  bin_hasher_.Add(buffer_);
  ELA_RETURN_IF_ERROR(WriteAll(bin_fd_, buffer_, options_.prefix + ".bin" + kPartial));
  buffer_.clear();
  return absl::OkStatus();
}

// One sequence a document, so the document entries are 0, 1, ..., S.
std::string ShardWriter::IndexBytes() const {
  std::string out(kIndexMagic);
  AppendRaw(kIndexVersion, &out);
  out.push_back(static_cast<char>(type_));
  AppendRaw(static_cast<uint64_t>(lengths_.size()), &out);
  AppendRaw(static_cast<uint64_t>(lengths_.size() + 1), &out);
  for (const int32_t length : lengths_) AppendRaw(length, &out);
  int64_t pointer = 0;
  for (const int32_t length : lengths_) {
    AppendRaw(pointer, &out);
    pointer += length * TokenBytes(type_);
  }
  for (int64_t s = 0; s <= documents(); ++s) AppendRaw(s, &out);
  return out;
}

absl::Status ShardWriter::Seal() {
  const std::string& prefix = options_.prefix;
  ELA_RETURN_IF_ERROR(Flush());
  const int fd = bin_fd_;
  bin_fd_ = -1;
  ELA_RETURN_IF_ERROR(SyncAndClose(fd, prefix + ".bin" + kPartial));
  const std::string index = IndexBytes();
  BlockHasher index_hasher;
  index_hasher.Add(index);
  Sidecar sidecar;
  sidecar.tokenizer_hash = options_.tokenizer_hash;
  sidecar.end_of_document = options_.end_of_document;
  sidecar.vocab_size = options_.vocab_size;
  sidecar.tokens = tokens_;
  sidecar.documents = documents();
  sidecar.text_bytes = text_bytes_;
  sidecar.bin = bin_hasher_.Finish();
  sidecar.idx = index_hasher.Finish();
  ELA_RETURN_IF_ERROR(WriteSynced(prefix + ".idx" + kPartial, index));
  ELA_RETURN_IF_ERROR(WriteSynced(prefix + ".json" + kPartial, SidecarToJson(sidecar)));
  // A replaced corpus loses its index first, so that no moment pairs an old index with new tokens.
  unlink((prefix + ".idx").c_str());
  for (const char* suffix : {".bin", ".json", ".idx"}) {
    ELA_RETURN_IF_ERROR(Rename(prefix + suffix + kPartial, prefix + suffix));
  }
  sealed_ = true;
  return SyncFolderOf(prefix);
}

}  // namespace ela::data
