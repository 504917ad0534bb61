#include "coordinator/ops/logs.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;
constexpr int kAllRanks = -1;
constexpr std::string_view kNoTime = "~";  // after every time: what mpirun says comes last

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

/// "2026-11-25T03:12:32.123" as ranks begin their lines with it; a line without one goes with the
/// line before it.
std::string TimeOf(std::string_view line, const std::string& before) {
  constexpr std::string_view kForm = "dddd-dd-ddTdd:dd:dd.ddd";
  if (line.size() < kForm.size()) return before;
  for (size_t i = 0; i < kForm.size(); ++i) {
    if (kForm[i] == 'd' ? !absl::ascii_isdigit(line[i]) : line[i] != kForm[i]) return before;
  }
  return std::string(line.substr(0, kForm.size()));
}

/// Whole lines from the offset on, at most kChunkBytes, and moves it. A line that is still being
/// written waits, unless nobody will finish it (`to_the_end`) or it is longer than that.
std::string ReadLines(const std::string& path, bool to_the_end, int64_t* offset) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return "";
  std::string data(static_cast<size_t>(kChunkBytes), '\0');
  stream.seekg(*offset);
  stream.read(data.data(), kChunkBytes);
  data.resize(static_cast<size_t>(std::max<std::streamsize>(stream.gcount(), 0)));
  const size_t newline = data.rfind('\n');
  if (newline != std::string::npos) {
    data.resize(newline + 1);
  } else if (!to_the_end && data.size() < static_cast<size_t>(kChunkBytes)) {
    return "";
  }
  *offset += static_cast<int64_t>(data.size());
  if (!data.empty() && data.back() != '\n') data.push_back('\n');
  return data;
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
    std::string path = core.launcher->LogPath({job_id_, attempt}, record.job().run_dir(), rank);
    const int64_t offset = TailOffset(path, tail_lines);
    files_.push_back({rank, std::move(path), offset, "", std::string(kNoTime)});
  }
}

/// The lines up to the first one that another file's line goes before.
v1::LogChunk LogCursor::Take(File* file) const {
  std::string_view others = kNoTime;
  for (const File& other : files_) {
    if (&other == file || other.lines.empty()) continue;
    others = std::min<std::string_view>(others, other.time);
  }
  size_t taken = 0;
  do {
    taken = file->lines.find('\n', taken) + 1;
    file->time = TimeOf(std::string_view(file->lines).substr(taken), file->time);
  } while (taken < file->lines.size() && file->time <= others);
  v1::LogChunk chunk;
  chunk.set_rank(file->rank);
  const std::string lines = file->lines.substr(0, taken);
  file->lines.erase(0, taken);
  chunk.set_data(rank_ == kAllRanks ? PrefixLines(lines, Prefix(file->rank)) : lines);
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
  File* first = nullptr;
  for (File& file : files_) {
    if (file.lines.empty()) {
      file.lines = ReadLines(file.path, attempt_over || !follow_, &file.offset);
      file.time = TimeOf(file.lines, file.time);
    }
    if (!file.lines.empty() && (first == nullptr || file.time < first->time)) first = &file;
  }
  if (first != nullptr) return Take(first);
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
