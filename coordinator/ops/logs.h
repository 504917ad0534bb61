// Logs: the ranks' output as they write it, over one attempt or all to come. Lines of several ranks
// come in the order of the times that they begin with, as far as they are there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

class LogCursor {
 public:
  /// InvalidArgument for a rank or an attempt that the job does not have.
  static absl::StatusOr<LogCursor> Open(const Core& core, const v1::LogsRequest& request);

  /// The next whole lines of one rank; nothing when there are none for now.
  std::optional<v1::LogChunk> Next(const Core& core);
  /// Everything was told: not following, or the job (or the one attempt asked for) has ended.
  bool finished() const { return finished_; }
  const std::string& job_id() const { return job_id_; }

 private:
  struct File {
    int rank = -1;
    std::string path;
    int64_t offset = 0;
    std::string lines;  // read, not yet told: at most 64 KiB
    std::string time;   // of the first of them
  };
  void OpenAttempt(const Core& core, const v1::JobRecord& record, int32_t attempt,
                   int64_t tail_lines);
  v1::LogChunk Take(File* file) const;

  std::string job_id_;
  int32_t rank_ = 0;
  int32_t only_attempt_ = 0;  // 0: the newest, and with follow the next ones
  bool follow_ = false;
  int64_t tail_lines_ = 0;
  int32_t attempt_ = 0;  // the one that is read; 0: none yet
  std::vector<File> files_;
  bool finished_ = false;
};

/// Offset in the file where its last `lines` lines begin; 0 when it has fewer.
int64_t TailOffset(const std::string& path, int64_t lines);

}  // namespace ela::coordinator::ops
