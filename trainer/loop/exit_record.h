// How a rank ends: exit codes, and the record that says why. Launchers read the code; people and
// the coordinator read the record.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "ela/v1/coordinator.pb.h"

namespace ela::trainer {

enum ExitCode : int {
  kExitDone = 0,
  kExitError = 1,        // worth a retry
  kExitStopped = 75,     // stopped on request after a checkpoint (USR2, TERM)
  kExitSuperseded = 76,  // a newer attempt exists
  kExitNeverRetry = 93,  // bad job, bad data, NaN under on_nan: stop
};

struct ExitReport {
  int code = kExitDone;
  v1::Outcome outcome = v1::OUTCOME_OK;
  std::string reason;  // one line
};

/// User errors (InvalidArgument, NotFound, FailedPrecondition, OutOfRange) and damaged data are
/// never worth a retry; Aborted means superseded; Cancelled means stopped on request;
/// ResourceExhausted is a full disk (memory that runs out is std::bad_alloc); the rest may pass.
ExitReport ReportOf(const absl::Status& status);

/// {"rank", "outcome", "exit_code", "reason", "unix_ms"} into <folder>/rank-<rank>.exit.json, and
/// from rank 0 without "rank" into <run_dir>/exit.json; durable before it returns. Best effort: a
/// full disk must not hide the exit code.
void WriteExitRecords(const std::string& run_dir, const std::string& attempt_dir, int rank,
                      const ExitReport& report);

/// Writes beside `path`, syncs and renames.
absl::Status WriteFileAtomically(const std::string& path, const std::string& content);

}  // namespace ela::trainer
