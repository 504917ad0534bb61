#include "coordinator/ops/logs.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;
constexpr int kAllRanks = -1;

std::string Prefix(int rank) { return rank < 0 ? "[mpirun] " : absl::StrCat("[rank ", rank, "] "); }

/// Puts the prefix before each line.
std::string PrefixLines(std::string_view lines, const std::string& prefix) {
  std::string text;
  while (!lines.empty()) {
    const size_t end = std::min(lines.find('\n'), lines.size() - 1) + 1;
    text += prefix;
    text += lines.substr(0, end);
    lines.remove_prefix(end);
  }
  return text;
}

}  // namespace

int64_t TailOffset(const std::string& path, int64_t lines) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file || lines <= 0) return 0;
  const int64_t size = file.tellg();
  int64_t begin = size;
  int64_t seen = 0;
  std::string block;
  while (begin > 0) {
    const int64_t length = std::min(begin, kChunkBytes);
    begin -= length;
    block.resize(static_cast<size_t>(length));
    file.seekg(begin);
    if (!file.read(block.data(), length)) return 0;
    for (int64_t i = length - 1; i >= 0; --i) {
      if (block[static_cast<size_t>(i)] != '\n' || begin + i == size - 1) continue;
      if (++seen == lines) return begin + i + 1;
    }
  }
  return 0;
}

absl::StatusOr<LogCursor> LogCursor::Open(const Core& core, const v1::LogsRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, core.jobs->Resolve(request.job()));
  if (request.rank() < kAllRanks || request.rank() >= record->ranks()) {
    return absl::InvalidArgumentError(absl::StrCat("job ", record->job().id(), " has ranks 0 to ",
                                                   record->ranks() - 1, ", not ", request.rank()));
  }
  if (request.attempt() < 0 || request.attempt() > record->job().attempts_size()) {
    return absl::InvalidArgumentError(absl::StrCat("job ", record->job().id(), " has ",
                                                   record->job().attempts_size(), " attempts, not ",
                                                   request.attempt()));
  }
  LogCursor cursor;
  cursor.job_id_ = record->job().id();
  cursor.rank_ = request.rank();
  cursor.only_attempt_ = request.attempt();
  cursor.follow_ = request.follow();
  cursor.tail_lines_ = request.tail_lines();
  return cursor;
}

void LogCursor::OpenAttempt(const Core& core, const v1::JobRecord& record, int32_t attempt,
                            int64_t tail_lines) {
  attempt_ = attempt;
  files_.clear();
  const int first = rank_ == kAllRanks ? kAllRanks : rank_;
  const int last = rank_ == kAllRanks ? record.ranks() - 1 : rank_;
  for (int rank = first; rank <= last; ++rank) {
    File file;
    file.rank = rank;
    file.path = core.launcher->LogPath({job_id_, attempt}, record.job().run_dir(), rank);
    file.offset = TailOffset(file.path, tail_lines);
    files_.push_back(std::move(file));
  }
  next_file_ = 0;
}

std::optional<v1::LogChunk> LogCursor::Read(File* file, bool to_the_end) const {
  std::ifstream stream(file->path, std::ios::binary);
  if (!stream) return std::nullopt;
  std::string data(static_cast<size_t>(kChunkBytes), '\0');
  stream.seekg(file->offset);
  stream.read(data.data(), kChunkBytes);
  data.resize(static_cast<size_t>(std::max<std::streamsize>(stream.gcount(), 0)));
  const size_t newline = data.rfind('\n');
  // A line that is still being written waits, unless nobody will finish it or it is longer than a
  // chunk.
  if (newline != std::string::npos) {
    data.resize(newline + 1);
  } else if (!to_the_end && data.size() < static_cast<size_t>(kChunkBytes)) {
    return std::nullopt;
  }
  if (data.empty()) return std::nullopt;
  file->offset += static_cast<int64_t>(data.size());
  if (data.back() != '\n') data.push_back('\n');
  v1::LogChunk chunk;
  chunk.set_rank(file->rank);
  chunk.set_data(rank_ == kAllRanks ? PrefixLines(data, Prefix(file->rank)) : data);
  return chunk;
}

std::optional<v1::LogChunk> LogCursor::Next(const Core& core) {
  const RecordPtr record = core.jobs->Find(job_id_);
  if (record == nullptr || finished_) return std::nullopt;
  const int32_t newest = record->job().attempts_size();
  if (attempt_ == 0 && newest > 0) {
    OpenAttempt(core, *record, only_attempt_ != 0 ? only_attempt_ : newest, tail_lines_);
  }
  const v1::Attempt* active = ActiveAttempt(*record);
  const bool attempt_over = attempt_ != 0 && (active == nullptr || active->number() != attempt_);
  for (size_t i = 0; i < files_.size(); ++i) {
    File& file = files_[(next_file_ + i) % files_.size()];
    if (std::optional<v1::LogChunk> chunk = Read(&file, attempt_over || !follow_)) {
      next_file_ = (next_file_ + i + 1) % files_.size();
      return chunk;
    }
  }
  // Nothing more for now.
  if (!follow_ || (attempt_over && only_attempt_ != 0)) {
    finished_ = true;
  } else if (attempt_over && attempt_ < newest) {
    OpenAttempt(core, *record, attempt_ + 1, 0);
    return Next(core);
  } else if (IsTerminal(record->job().state())) {
    finished_ = true;
  }
  return std::nullopt;
}

}  // namespace ela::coordinator::ops
