#include "data/text/byte_stream.h"

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

class FileStream final : public ByteStream {
 public:
  FileStream(const InputFile& file, int fd) : path_(file.path), regular_(file.regular), fd_(fd) {
    if (regular_) posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  ~FileStream() override { close(fd_); }

  absl::Status Read(size_t bytes, std::string* out) override {
    const size_t before = out->size();
    out->resize(before + bytes);
    size_t filled = 0;
    while (filled < bytes) {
      const ssize_t got = read(fd_, out->data() + before + filled, bytes - filled);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        return absl::UnavailableError(absl::StrCat(path_, ": cannot read: ", std::strerror(errno)));
      }
      if (got == 0) break;
      filled += static_cast<size_t>(got);
    }
    out->resize(before + filled);
    consumed_ += static_cast<int64_t>(filled);
    return absl::OkStatus();
  }

  absl::Status Skip(int64_t bytes) override {
    if (regular_ && lseek(fd_, bytes, SEEK_CUR) >= 0) {
      consumed_ += bytes;
      return absl::OkStatus();
    }
    return SkipByReading(this, path_, bytes);
  }

  static absl::Status SkipByReading(ByteStream* stream, const std::string& path, int64_t bytes) {
    std::string passed;
    while (bytes > 0) {
      passed.clear();
      ELA_RETURN_IF_ERROR(
          stream->Read(static_cast<size_t>(std::min<int64_t>(bytes, 1 << 20)), &passed));
      if (passed.empty()) {
        return absl::OutOfRangeError(
            absl::StrCat(path, ": shorter than when the interrupted build read it"));
      }
      bytes -= static_cast<int64_t>(passed.size());
    }
    return absl::OkStatus();
  }

  int64_t consumed() const override { return consumed_; }

 private:
  std::string path_;
  bool regular_;
  int fd_;
  int64_t consumed_ = 0;
};

class ZstdStream final : public ByteStream {
 public:
  ZstdStream(const InputFile& file, std::unique_ptr<ByteStream> compressed)
      : path_(file.path), compressed_(std::move(compressed)), context_(ZSTD_createDCtx()) {}
  ~ZstdStream() override { ZSTD_freeDCtx(context_); }

  absl::Status Read(size_t bytes, std::string* out) override {
    const size_t before = out->size();
    out->resize(before + bytes);
    ZSTD_outBuffer to{out->data() + before, bytes, 0};
    while (to.pos < to.size) {
      if (from_.pos == from_.size) ELA_RETURN_IF_ERROR(Refill());
      const bool at_end = from_.size == 0;
      if (at_end && frame_ended_) break;
      const size_t at = to.pos;
      const size_t left = ZSTD_decompressStream(context_, &to, &from_);
      const bool cut_off = at_end && to.pos == at;
      if (ZSTD_isError(left) || cut_off) {
        return absl::InvalidArgumentError(absl::StrCat(
            path_, ": damaged zstd file: ", cut_off ? "it is cut off" : ZSTD_getErrorName(left),
            "; compress it again, or leave it out"));
      }
      frame_ended_ = left == 0;
    }
    out->resize(before + to.pos);
    return absl::OkStatus();
  }

  absl::Status Skip(int64_t bytes) override {
    return FileStream::SkipByReading(this, path_, bytes);
  }
  int64_t consumed() const override { return compressed_->consumed(); }

 private:
  absl::Status Refill() {
    buffer_.clear();
    ELA_RETURN_IF_ERROR(compressed_->Read(ZSTD_DStreamInSize(), &buffer_));
    from_ = {buffer_.data(), buffer_.size(), 0};
    return absl::OkStatus();
  }

  std::string path_;
  std::unique_ptr<ByteStream> compressed_;
  ZSTD_DCtx* context_;
  std::string buffer_;
  ZSTD_inBuffer from_{nullptr, 0, 0};
  bool frame_ended_ = true;  // between frames: the only place where a file may end
};

}  // namespace

absl::StatusOr<std::unique_ptr<ByteStream>> ByteStream::Open(const InputFile& file) {
  const int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::UnavailableError(absl::StrCat(file.path, ": cannot open: ", std::strerror(errno)));
  }
  std::unique_ptr<ByteStream> stream = std::make_unique<FileStream>(file, fd);
  if (file.zstd) stream = std::make_unique<ZstdStream>(file, std::move(stream));
  return stream;
}

}  // namespace ela::data
