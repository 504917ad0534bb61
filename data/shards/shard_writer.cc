#include "data/shards/shard_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

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

absl::StatusOr<int> OpenForWriting(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0644);
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
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const std::string folder = parent.empty() ? "." : parent;
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return IoError(folder, "open");
  return SyncAndClose(fd, folder);
}

absl::Status WriteSynced(const std::string& path, std::string_view bytes) {
  ELA_ASSIGN_OR_RETURN(const int fd, OpenForWriting(path, O_WRONLY | O_CREAT | O_TRUNC));
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

absl::Status ShardWriter::OpenBin(int flags) {
  ELA_ASSIGN_OR_RETURN(bin_fd_, OpenForWriting(Path(".bin"), flags));
  if (flock(bin_fd_, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
  close(std::exchange(bin_fd_, -1));
  keep_ = true;  // the files are another's
  return absl::UnavailableError(
      absl::StrCat(Path(".bin"), ": another build is writing it; wait for it or end it"));
}

absl::StatusOr<std::unique_ptr<ShardWriter>> ShardWriter::Create(
    const ShardWriterOptions& options) {
  const std::string idx = options.prefix + ".idx";
  if (!options.replace && access(idx.c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat(idx, ": a corpus of this name exists; choose another, or replace it"));
  }
  std::unique_ptr<ShardWriter> writer(new ShardWriter(options));
  ELA_RETURN_IF_ERROR(writer->OpenBin(O_RDWR | O_CREAT));
  if (ftruncate(writer->bin_fd_, 0) != 0) return IoError(writer->Path(".bin"), "truncate");
  unlink(writer->Path(".lengths").c_str());
  return writer;
}

absl::StatusOr<std::unique_ptr<ShardWriter>> ShardWriter::Resume(const ShardWriterOptions& options,
                                                                 const ShardProgress& progress) {
  std::unique_ptr<ShardWriter> writer(new ShardWriter(options));
  ELA_RETURN_IF_ERROR(writer->OpenBin(O_RDWR | O_CREAT));
  writer->keep_ = true;
  ELA_RETURN_IF_ERROR(writer->ReadBack(progress));
  return writer;
}

// Cuts the files back to what was committed, and takes the lengths and checksums from them.
absl::Status ShardWriter::ReadBack(const ShardProgress& progress) {
  const auto too_short = [](const std::string& path) {
    return absl::InvalidArgumentError(
        absl::StrCat(path,
                     ": holds less than the interrupted build had written; remove it to "
                     "start again"));
  };
  const int64_t bin_bytes = progress.tokens * TokenBytes(type_);
  if (lseek(bin_fd_, 0, SEEK_END) < bin_bytes) return too_short(Path(".bin"));
  if (ftruncate(bin_fd_, bin_bytes) != 0) return IoError(Path(".bin"), "truncate");
  lseek(bin_fd_, 0, SEEK_SET);
  std::string block(kBufferBytes, 0);
  for (int64_t left = bin_bytes; left > 0;) {
    const ssize_t got = read(bin_fd_, block.data(), std::min<int64_t>(left, kBufferBytes));
    if (got <= 0) return IoError(Path(".bin"), "read");
    bin_hasher_.Add(std::string_view(block).substr(0, static_cast<size_t>(got)));
    left -= got;
  }
  lengths_.resize(static_cast<size_t>(progress.documents));
  lengths_committed_ = lengths_.size();
  const auto length_bytes = static_cast<int64_t>(lengths_.size() * sizeof(int32_t));
  ELA_ASSIGN_OR_RETURN(const int fd, OpenForWriting(Path(".lengths"), O_RDWR | O_CREAT));
  const bool whole = pread(fd, lengths_.data(), length_bytes, 0) == length_bytes &&
                     ftruncate(fd, length_bytes) == 0;
  close(fd);
  if (!whole) return too_short(Path(".lengths"));
  tokens_ = progress.tokens;
  text_bytes_ = progress.text_bytes;
  open_tokens_ = progress.open_tokens;
  return absl::OkStatus();
}

ShardWriter::~ShardWriter() {
  if (bin_fd_ >= 0) close(bin_fd_);
  if (sealed_ || keep_) return;
  for (const char* suffix : {".bin", ".json", ".idx", ".lengths"}) unlink(Path(suffix).c_str());
}

absl::Status ShardWriter::Add(const std::vector<int32_t>& ids, int64_t text_bytes) {
  ELA_RETURN_IF_ERROR(Append(ids, text_bytes));
  return EndDocument();
}

absl::Status ShardWriter::Append(const std::vector<int32_t>& ids, int64_t text_bytes) {
  if (ids.size() > static_cast<size_t>(INT32_MAX - open_tokens_)) {
    return absl::InvalidArgumentError(absl::StrCat("a document of ",
                                                   open_tokens_ + static_cast<int64_t>(ids.size()),
                                                   " tokens is too long for the index; split it"));
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
  open_tokens_ += static_cast<int64_t>(ids.size());
  tokens_ += static_cast<int64_t>(ids.size());
  text_bytes_ += text_bytes;
  return buffer_.size() >= kBufferBytes ? Flush() : absl::OkStatus();
}

absl::Status ShardWriter::EndDocument() {
  lengths_.push_back(static_cast<int32_t>(open_tokens_));
  open_tokens_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<ShardProgress> ShardWriter::Commit() {
  ELA_RETURN_IF_ERROR(Flush());
  if (fdatasync(bin_fd_) != 0) return IoError(Path(".bin"), "sync");
  ELA_ASSIGN_OR_RETURN(const int fd,
                       OpenForWriting(Path(".lengths"), O_WRONLY | O_CREAT | O_APPEND));
  const std::string_view added(reinterpret_cast<const char*>(lengths_.data() + lengths_committed_),
                               (lengths_.size() - lengths_committed_) * sizeof(int32_t));
  const absl::Status written = WriteAll(fd, added, Path(".lengths"));
  const absl::Status synced = SyncAndClose(fd, Path(".lengths"));
  ELA_RETURN_IF_ERROR(written);
  ELA_RETURN_IF_ERROR(synced);
  lengths_committed_ = lengths_.size();
  keep_ = true;
  return ShardProgress{documents(), tokens_, text_bytes_, open_tokens_};
}

absl::Status ShardWriter::Flush() {
  bin_hasher_.Add(buffer_);
  ELA_RETURN_IF_ERROR(WriteAll(bin_fd_, buffer_, Path(".bin")));
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
  if (open_tokens_ > 0) ELA_RETURN_IF_ERROR(EndDocument());
  ELA_RETURN_IF_ERROR(Flush());
  const int fd = bin_fd_;
  bin_fd_ = -1;
  ELA_RETURN_IF_ERROR(SyncAndClose(fd, Path(".bin")));
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
  ELA_RETURN_IF_ERROR(WriteSynced(Path(".idx"), index));
  ELA_RETURN_IF_ERROR(WriteSynced(Path(".json"), SidecarToJson(sidecar)));
  // A replaced corpus loses its index first, so that no moment pairs an old index with new tokens.
  unlink((prefix + ".idx").c_str());
  for (const char* suffix : {".bin", ".json", ".idx"}) {
    ELA_RETURN_IF_ERROR(Rename(Path(suffix), prefix + suffix));
  }
  sealed_ = true;
  unlink(Path(".lengths").c_str());
  return SyncFolderOf(prefix);
}

absl::StatusOr<bool> ShardWriter::FinishSeal(const std::string& prefix) {
  if (access((prefix + ".bin" + kPartial).c_str(), F_OK) == 0) return false;
  for (const char* suffix : {".json", ".idx"}) {
    const std::string partial = prefix + suffix + kPartial;
    if (access(partial.c_str(), F_OK) == 0) ELA_RETURN_IF_ERROR(Rename(partial, prefix + suffix));
  }
  unlink((prefix + ".lengths" + kPartial).c_str());
  ELA_RETURN_IF_ERROR(SyncFolderOf(prefix));
  return access((prefix + ".idx").c_str(), F_OK) == 0;
}

}  // namespace ela::data
