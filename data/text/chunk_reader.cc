#include "data/text/chunk_reader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr size_t kSniffBytes = 8192;

}  // namespace

ChunkReader::ChunkReader(const std::vector<InputFile>& files, const ReadPosition& start,
                         const Notice& notice)
    : files_(files), notice_(notice), position_(start) {
  for (int64_t i = 0; i < start.input; ++i) consumed_ += files_[i].bytes;
}

int64_t ChunkReader::consumed() const {
  return consumed_ + (stream_ == nullptr ? 0 : stream_->consumed());
}

absl::Status ChunkReader::Fill(size_t bytes) {
  if (at_end_ || pending_.size() >= bytes) return absl::OkStatus();
  ELA_RETURN_IF_ERROR(stream_->Read(bytes - pending_.size(), &pending_));
  at_end_ = pending_.size() < bytes;
  return absl::OkStatus();
}

// False if the file holds nothing to read.
absl::StatusOr<bool> ChunkReader::OpenInput() {
  const InputFile& file = files_[position_.input];
  ELA_ASSIGN_OR_RETURN(stream_, ByteStream::Open(file));
  pending_.clear();
  at_end_ = false;
  if (position_.offset > 0) {
    ELA_RETURN_IF_ERROR(stream_->Skip(position_.offset));
    return true;
  }
  ELA_RETURN_IF_ERROR(Fill(kSniffBytes));
  const std::string_view head = std::string_view(pending_).substr(0, kSniffBytes);
  if (head.find('\0') != std::string_view::npos) {
    ++skipped_files_;
    notice_(absl::StrCat(file.path, ": skipped, not text"));
    return false;
  }
  return !pending_.empty();
}

// Where to end the chunk that pending_ begins with: behind a line if there is one.
absl::StatusOr<size_t> ChunkReader::FindCut(const InputFile& file) {
  for (size_t limit = kChunkBytes;; limit *= 2) {
    ELA_RETURN_IF_ERROR(Fill(limit));
    if (at_end_ && pending_.size() <= limit) return pending_.size();
    const size_t newline = pending_.rfind('\n', limit - 1);
    if (newline != std::string::npos) return newline + 1;
    if (file.format == TextFormat::kText) {
      size_t cut = limit - 1;  // before the last character, wherever that begins
      while (cut > limit - 4 && (pending_[cut] & 0xC0) == 0x80) --cut;
      return cut;
    }
    if (limit >= kMaxLineBytes) {
      return absl::InvalidArgumentError(absl::StrCat(file.path, ":", position_.line + 1,
                                                     ": a line of more than 1 GiB; split it"));
    }
  }
}

absl::StatusOr<bool> ChunkReader::Next(Chunk* chunk) {
  const auto count = static_cast<int64_t>(files_.size());
  while (position_.input < count) {
    const InputFile& file = files_[position_.input];
    bool any = true;
    if (stream_ == nullptr) {
      ELA_ASSIGN_OR_RETURN(any, OpenInput());
    }
    size_t cut = 0;
    if (any) {
      ELA_ASSIGN_OR_RETURN(cut, FindCut(file));
    }
    // One byte further tells whether the file ends here.
    if (cut > 0) ELA_RETURN_IF_ERROR(Fill(cut + 1));
    const bool ends = cut == pending_.size() && (at_end_ || cut == 0);
    if (cut > 0) {
      chunk->input = &file;
      chunk->first_line = position_.line + 1;
      chunk->begins_file = position_.offset == 0;
      chunk->ends_file = ends;
      chunk->skipped_files = skipped_files_;
      chunk->bytes.assign(pending_, 0, cut);
      pending_.erase(0, cut);
      position_.offset += static_cast<int64_t>(cut);
      if (file.format == TextFormat::kJsonLines) {
        position_.line += std::count(chunk->bytes.begin(), chunk->bytes.end(), '\n');
      }
    }
    if (ends || !any) {
      consumed_ += file.bytes;
      stream_.reset();
      position_ = {position_.input + 1, 0, 0};
    }
    chunk->next = position_;
    if (cut > 0) return true;
  }
  return false;
}

}  // namespace ela::data
