#include "coordinator/launch/local.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/supervisor/files.h"
#include "coordinator/supervisor/process.h"
#include "coordinator/supervisor/spawn.h"
#include "proto/status_macros.h"

namespace ela::coordinator {
namespace {

constexpr int kClaimTimeoutMs = 20'000;

int64_t ModifiedNs(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return 0;
  return info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec + info.st_size;
}

/// Waits for the supervisor's byte. False: it went away without one.
bool AwaitReady(int fd) {
  pollfd wait = {fd, POLLIN, 0};
  char byte = 0;
  return poll(&wait, 1, kClaimTimeoutMs) > 0 && read(fd, &byte, 1) == 1;
}

}  // namespace

std::string LocalLauncher::AttemptDir(const LaunchKey& key) const {
  return absl::StrCat(options_.state_dir, "/jobs/", key.job_id, "/attempts/", key.attempt);
}

std::string LocalLauncher::DirOfHandle(const std::string& handle) const {
  const std::pair<std::string, std::string> parts = absl::StrSplit(handle, absl::MaxSplits('/', 1));
  return absl::StrCat(options_.state_dir, "/jobs/", parts.first, "/attempts/", parts.second);
}

absl::Status LocalLauncher::Validate(const LaunchSpec& spec) {
  if (spec.ranks > options_.slots) {
    return absl::InvalidArgumentError(absl::StrCat("the job has ", spec.ranks,
                                                   " ranks and this machine ", options_.slots,
                                                   " slots; lower parallelism or raise --slots"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> LocalLauncher::Find(const LaunchKey& key) {
  const auto claim = ReadClaim(AttemptDir(key));
  // A claim that cannot be read was made all the same.
  if (claim.ok() && !claim->has_value()) return std::optional<std::string>();
  if (!claim.ok() && claim.status().code() != absl::StatusCode::kDataLoss) return claim.status();
  return std::optional<std::string>(absl::StrCat(key.job_id, "/", key.attempt));
}

std::vector<std::string> LocalLauncher::MpirunCommand(const LaunchSpec& spec,
                                                      const std::string& mpirun) const {
  std::vector<std::string> argv = {mpirun,      "-n",   absl::StrCat(spec.ranks),
                                   "--bind-to", "none", "--oversubscribe"};
  // One machine: nothing may leave it, and no other network is probed at start.
  for (const auto& [name, value] : std::vector<std::pair<const char*, const char*>>{
           {"oob_tcp_if_include", "lo"},
           {"btl", "self,vader"},
           {"pml", "ob1"},
           {"btl_vader_single_copy_mechanism", "none"}}) {
    argv.insert(argv.end(), {"--mca", name, value});
  }
  const std::string directory = AttemptDir(spec.key);
  argv.insert(argv.end(),
              {options_.supervisor_path, "--guard", "--hold-usr2", "--", options_.trainer_path,
               "--job", directory + "/job.yaml", "--run-dir", spec.run_dir, "--coordinator",
               spec.coordinator, "--job-id", spec.key.job_id, "--attempt",
               absl::StrCat(spec.key.attempt), "--token-file", directory + "/token"});
  return argv;
}

absl::Status LocalLauncher::Prepare(const LaunchSpec& spec, const std::string& directory) const {
  for (const std::string& program : {options_.trainer_path, options_.supervisor_path}) {
    if (access(program.c_str(), X_OK) != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(program, ": not there; start ela-coordinator with --program-dir"));
    }
  }
  ELA_ASSIGN_OR_RETURN(const std::string mpirun, FindMpirun());
  ELA_RETURN_IF_ERROR(MakeDirectories(directory + "/logs"));
  ELA_RETURN_IF_ERROR(WriteFileDurably(directory + "/job.yaml", spec.job_yaml, 0600));
  ELA_RETURN_IF_ERROR(WriteFileDurably(directory + "/token", spec.token + "\n", 0600));
  LaunchFile launch;
  launch.argv = MpirunCommand(spec, mpirun);
  launch.ranks = spec.ranks;
  ELA_RETURN_IF_ERROR(WriteLaunchFile(directory, launch));
  // logs always shows the newest attempt's.
  const std::string link = spec.run_dir + "/logs";
  const std::string temporary = link + ".new";
  unlink(temporary.c_str());
  const std::string target = absl::StrCat("attempts/", spec.key.attempt, "/logs");
  if (symlink(target.c_str(), temporary.c_str()) == 0) rename(temporary.c_str(), link.c_str());
  return absl::OkStatus();
}

absl::StatusOr<pid_t> LocalLauncher::StartSupervisor(const LaunchSpec& spec,
                                                     const std::string& directory, int ready_fd) {
  ELA_ASSIGN_OR_RETURN(
      const pid_t pid,
      Spawn({.argv = {options_.supervisor_path, "--attempt-dir", directory, "--ready-fd",
                      absl::StrCat(kPassedFd)},
             .environment =
                 RankEnvironment(spec.ranks, static_cast<int>(std::thread::hardware_concurrency())),
             .log = directory + "/supervisor.log",
             .own_session = true,
             .pass_fd = ready_fd}));
  absl::MutexLock lock(&mutex_);
  children_.insert(pid);
  return pid;
}

absl::StatusOr<std::string> LocalLauncher::Launch(const LaunchSpec& spec) {
  ELA_RETURN_IF_ERROR(Validate(spec));
  const std::string directory = AttemptDir(spec.key);
  ELA_ASSIGN_OR_RETURN(const std::optional<std::string> found, Find(spec.key));
  if (found) return absl::AlreadyExistsError(absl::StrCat(*found, " was launched before"));
  ELA_RETURN_IF_ERROR(Prepare(spec, directory));
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  const absl::StatusOr<pid_t> pid = StartSupervisor(spec, directory, ready[1]);
  close(ready[1]);
  const bool claimed = pid.ok() && AwaitReady(ready[0]);
  close(ready[0]);
  ELA_RETURN_IF_ERROR(pid.status());
  if (claimed) return absl::StrCat(spec.key.job_id, "/", spec.key.attempt);
  kill(*pid, SIGKILL);  // it must not claim after we have told that it did not start
  waitpid(*pid, nullptr, 0);
  ReapChildren();
  ELA_ASSIGN_OR_RETURN(const std::optional<std::string> other, Find(spec.key));
  if (other) return absl::AlreadyExistsError(absl::StrCat(*other, " was launched before"));
  const auto log = ReadFileIfExists(directory + "/supervisor.log");
  return absl::InternalError(
      absl::StrCat("the supervisor did not start: ", log.ok() && *log ? **log : directory));
}

absl::StatusOr<Observation> LocalLauncher::Observe(const std::string& handle) {
  ReapChildren();
  const std::string directory = DirOfHandle(handle);
  const auto exit = ReadExitRecord(directory);
  if (!exit.ok() && exit.status().code() != absl::StatusCode::kDataLoss) return exit.status();
  Observation observation;
  if (exit.ok() && exit->has_value()) {
    observation.ended = true;
    observation.exit = **exit;
    return observation;
  }
  const auto claim = ReadClaim(directory);
  if (!claim.ok() && claim.status().code() != absl::StatusCode::kDataLoss) return claim.status();
  const bool known = claim.ok() && claim->has_value();
  if (known && IsHeld(**claim)) {
    const std::string run_dir = std::filesystem::path(directory).parent_path().parent_path();
    observation.activity = ModifiedNs(run_dir + "/metrics.jsonl");
    return observation;
  }
  if (!known && access(directory.c_str(), F_OK) != 0) {
    return absl::UnavailableError(absl::StrCat(directory, ": cannot be seen"));
  }
  // The record may have been written between the two looks.
  const auto again = ReadExitRecord(directory);
  if (again.ok() && again->has_value()) {
    observation.ended = true;
    observation.exit = **again;
    return observation;
  }
  return EndedWithoutRecord(directory, known ? **claim : Claim{});
}

/// The supervisor was killed. Its ranks die with mpirun, which dies with it; whatever is left of
/// the session goes now.
Observation LocalLauncher::EndedWithoutRecord(const std::string& directory, const Claim& claim) {
  Observation observation;
  if (claim.pid > 1 && claim.boot_id == BootId()) {
    bool left = false;
    for (const ProcessStat& process : ProcessesOfSession(static_cast<pid_t>(claim.pid))) {
      if (process.start_ticks < claim.start_ticks) continue;
      kill(process.pid, SIGKILL);
      left = true;
    }
    if (left) return observation;  // ended once nothing is seen any more
  }
  observation.ended = true;
  observation.exit.exit_code = -1;
  observation.exit.reason = claim.pid > 1 && claim.boot_id != BootId()
                                ? "the machine was restarted"
                                : "the supervisor of the attempt died";
  observation.exit.ended_unix_ms = UnixMs();
  const auto launch = ReadLaunchFile(directory);
  if (launch.ok()) observation.exit.ranks = ReadRankExits(directory, launch->ranks);
  (void)WriteExitRecord(directory, observation.exit);
  return observation;
}

absl::Status LocalLauncher::Request(const std::string& handle, const StopRequest& request) {
  const std::string directory = DirOfHandle(handle);
  ELA_ASSIGN_OR_RETURN(const auto before, ReadStopRequest(directory));
  if (!before || request.deadline_unix_ms < before->deadline_unix_ms) {
    ELA_RETURN_IF_ERROR(WriteStopRequest(directory, request));
  }
  ELA_ASSIGN_OR_RETURN(const auto claim, ReadClaim(directory));
  // Wakes the supervisor, which looks five times a second anyway.
  if (claim && IsHeld(*claim)) kill(static_cast<pid_t>(claim->pid), SIGUSR1);
  return absl::OkStatus();
}

absl::Status LocalLauncher::Signal(const std::string& handle, int64_t deadline_ms) {
  return Request(handle, {UnixMs() + deadline_ms, false});
}

absl::Status LocalLauncher::Stop(const std::string& handle, int64_t grace_ms, bool hung) {
  return Request(handle, {UnixMs() + grace_ms, hung});
}

absl::StatusOr<std::vector<LaunchKey>> LocalLauncher::ListOwned() {
  std::vector<LaunchKey> keys;
  std::error_code error;
  const std::filesystem::path jobs = options_.state_dir + "/jobs";
  for (const auto& job : std::filesystem::directory_iterator(jobs, error)) {
    std::error_code inner;
    for (const auto& attempt :
         std::filesystem::directory_iterator(job.path() / "attempts", inner)) {
      LaunchKey key;
      key.job_id = job.path().filename();
      if (!absl::SimpleAtoi(attempt.path().filename().string(), &key.attempt)) continue;
      const auto claim = ReadClaim(attempt.path());
      const auto exit = ReadExitRecord(attempt.path());
      const bool ended = exit.ok() && exit->has_value();
      if (claim.ok() && claim->has_value() && !ended) keys.push_back(key);
    }
  }
  return keys;
}

std::string LocalLauncher::LogPath(const LaunchKey& key, const std::string& run_dir, int rank) {
  const std::string directory = absl::StrCat(run_dir, "/attempts/", key.attempt);
  return rank < 0 ? directory + "/mpirun.log"
                  : absl::StrCat(directory, "/logs/rank-", rank, ".log");
}

absl::Status LocalLauncher::Forget(const std::string& handle) {
  ReapChildren();
  unlink((DirOfHandle(handle) + "/token").c_str());
  return absl::OkStatus();
}

void LocalLauncher::ReapChildren() {
  absl::MutexLock lock(&mutex_);
  for (auto it = children_.begin(); it != children_.end();) {
    const pid_t result = waitpid(*it, nullptr, WNOHANG);
    it = result == 0 ? std::next(it) : children_.erase(it);
  }
}

}  // namespace ela::coordinator
