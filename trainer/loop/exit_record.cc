#include "trainer/loop/exit_record.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"

namespace ela::trainer {
namespace {

absl::Status FileError(const std::string& path, const char* what) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot ", what, ": ", std::strerror(errno)));
}

// "OUTCOME_USER_ERROR" -> "user_error"
std::string OutcomeKey(v1::Outcome outcome) {
  return absl::AsciiStrToLower(v1::Outcome_Name(outcome).substr(std::strlen("OUTCOME_")));
}

}  // namespace

ExitReport ReportOf(const absl::Status& status) {
  const std::string reason(status.message());
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return {kExitDone, v1::OUTCOME_OK, reason};
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kDataLoss:
      return {kExitNeverRetry, v1::OUTCOME_USER_ERROR, reason};
    case absl::StatusCode::kAborted:
      return {kExitSuperseded, v1::OUTCOME_LOST, reason};
    case absl::StatusCode::kCancelled:
      return {kExitStopped, v1::OUTCOME_PREEMPTED, reason};
    case absl::StatusCode::kResourceExhausted:
      return {kExitError, v1::OUTCOME_DISK_FULL, reason};
    default:
      return {kExitError, v1::OUTCOME_INFRA, reason};
  }
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& content) {
  const std::string temporary = absl::StrCat(path, ".tmp.", getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(temporary, "create");
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = write(fd, content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const absl::Status error = FileError(temporary, "write");
      close(fd);
      unlink(temporary.c_str());
      return error;
    }
    done += static_cast<size_t>(n);
  }
  const bool synced = fsync(fd) == 0;
  if (close(fd) != 0 || !synced) return FileError(temporary, "sync");
  if (rename(temporary.c_str(), path.c_str()) != 0) return FileError(path, "rename to");
  return absl::OkStatus();
}

void WriteExitRecords(const std::string& run_dir, const std::string& attempt_dir, int rank,
                      const ExitReport& report) {
  nlohmann::ordered_json record = {{"outcome", OutcomeKey(report.outcome)},
                                   {"exit_code", report.code},
                                   {"reason", report.reason},
                                   {"unix_ms", absl::ToUnixMillis(absl::Now())}};
  const auto dump = [](const nlohmann::ordered_json& json) {
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  };
  if (rank == 0) WriteFileAtomically(run_dir + "/exit.json", dump(record)).IgnoreError();
  record["rank"] = rank;
  WriteFileAtomically(absl::StrCat(attempt_dir, "/rank-", rank, ".exit.json"), dump(record))
      .IgnoreError();
}

}  // namespace ela::trainer
