// The files of an attempt's directory by which coordinator and supervisor speak, across restarts of
// either:
//   launch.json          coordinator -> supervisor: argv of mpirun, ranks
//   claim.json           supervisor: "this attempt is mine" (pid, start time, boot id); exactly one
//   can be made request.json         coordinator -> supervisor: checkpoint and exit, TERM at the
//   deadline; rewritten to shorten it rank-N.exit.json     rank N: how it ended exit.json
//   supervisor: how the attempt ended; afterwards none of its processes is left
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::coordinator {

struct LaunchFile {
  std::vector<std::string> argv;
  int ranks = 0;
};
absl::Status WriteLaunchFile(const std::string& attempt_dir, const LaunchFile& launch);
absl::StatusOr<LaunchFile> ReadLaunchFile(const std::string& attempt_dir);

struct Claim {
  int64_t pid = 0;
  int64_t start_ticks = 0;
  std::string boot_id;
  int64_t unix_ms = 0;
};
/// AlreadyExists when the attempt is claimed.
absl::Status MakeClaim(const std::string& attempt_dir, const Claim& claim);
/// nullopt: not claimed. DataLoss: the file cannot be read as a claim.
absl::StatusOr<std::optional<Claim>> ReadClaim(const std::string& attempt_dir);
/// Whether the claiming process still runs on this boot.
bool IsHeld(const Claim& claim);

/// "Write a checkpoint and go; what is left after the deadline is stopped by force."
struct StopRequest {
  int64_t deadline_unix_ms = 0;
  bool dump_stacks = false;  // first note what every process of the attempt is doing (a hang)
};
absl::Status WriteStopRequest(const std::string& attempt_dir, const StopRequest& request);
absl::StatusOr<std::optional<StopRequest>> ReadStopRequest(const std::string& attempt_dir);

struct RankExit {
  int rank = -1;
  std::string outcome;
  int exit_code = 0;
  std::string reason;
  int64_t unix_ms = 0;
};
/// The records of all ranks that left one, ascending by rank. A record that cannot be read is left
/// out.
std::vector<RankExit> ReadRankExits(const std::string& attempt_dir, int ranks);

struct ExitRecord {
  int exit_code = 0;     // of mpirun
  int signal = 0;        // that ended mpirun; 0: none
  int failed_rank = -1;  // as mpirun tells it
  int failed_signal = 0;
  bool stop_requested = false;
  bool forced = false;  // the deadline passed and the ranks were killed
  std::string reason;   // set when it could not start, or the supervisor died
  int64_t started_unix_ms = 0;
  int64_t ended_unix_ms = 0;
  std::vector<RankExit> ranks;
};
absl::Status WriteExitRecord(const std::string& attempt_dir, const ExitRecord& record);
/// nullopt: not ended. DataLoss: the file is damaged.
absl::StatusOr<std::optional<ExitRecord>> ReadExitRecord(const std::string& attempt_dir);

/// Finds in mpirun's log which rank failed first and by which signal or exit code, where mpirun
/// says so.
void ReadFailureFromLog(const std::string& log_path, ExitRecord* record);

}  // namespace ela::coordinator
