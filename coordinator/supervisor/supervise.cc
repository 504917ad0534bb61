#include "coordinator/supervisor/supervise.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "coordinator/supervisor/files.h"
#include "coordinator/supervisor/process.h"
#include "coordinator/supervisor/records.h"
#include "coordinator/supervisor/spawn.h"

namespace ela::coordinator {
namespace {

constexpr int kPollMs = 200;
constexpr int64_t kTermGraceMs = 2'000;  // from TERM to KILL; mpirun itself takes about that long
constexpr int64_t kRepeatNoticeMs = 5'000;      // a notice sent before a rank listened is lost
constexpr int64_t kTerminatedGraceMs = 10'000;  // when the supervisor itself is asked to go

class Supervisor {
 public:
  Supervisor(std::string directory, std::string self_path)
      : directory_(std::move(directory)), self_path_(std::move(self_path)) {}

  int Run(int ready_fd);

 private:
  absl::Status Claim();
  bool StartMpirun();
  void WatchUntilExit();
  void TakeSignals();
  void TakeRequest();
  void Escalate();
  void SendNotice(int64_t now_ms);
  void DumpStacks();
  void Reap();
  void KillSession();
  void WriteRecord();

  const std::string directory_;
  const std::string self_path_;
  LaunchFile launch_;
  ExitRecord record_;
  int signal_fd_ = -1;
  pid_t mpirun_ = 0;
  bool exited_ = false;
  std::optional<int64_t> deadline_ms_;  // monotonic; set once a stop was asked for
  int64_t request_seen_ = 0;            // deadline_unix_ms of the request that was read last
  int64_t notice_sent_ms_ = 0;
  int64_t term_sent_ms_ = 0;
  bool dumped_ = false;
};

int Supervisor::Run(int ready_fd) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);  // ranks that lose mpirun become ours, to be reaped
  prctl(PR_SET_NAME, "ela-supervisor");
  const absl::StatusOr<LaunchFile> launch = ReadLaunchFile(directory_);
  if (!launch.ok()) {
    std::fprintf(stderr, "ela-supervisor: %s\n", launch.status().ToString().c_str());
    return 1;
  }
  launch_ = *launch;
  sigset_t taken;
  sigemptyset(&taken);
  for (const int signal : {SIGCHLD, SIGUSR1, SIGTERM, SIGINT, SIGHUP}) sigaddset(&taken, signal);
  sigprocmask(SIG_SETMASK, &taken, nullptr);
  signal_fd_ = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
  const absl::Status claimed = Claim();
  if (!claimed.ok()) {
    std::fprintf(stderr, "ela-supervisor: %s\n", claimed.ToString().c_str());
    return claimed.code() == absl::StatusCode::kAlreadyExists ? 3 : 1;
  }
  if (ready_fd >= 0) {
    (void)!write(ready_fd, "1", 1);
    close(ready_fd);
  }
  record_.started_unix_ms = UnixMs();
  if (StartMpirun()) WatchUntilExit();
  KillSession();
  WriteRecord();
  return 0;
}

absl::Status Supervisor::Claim() {
  const std::optional<ProcessStat> self = ReadProcessStat(getpid());
  if (!self) return absl::UnavailableError("/proc/self/stat cannot be read");
  ela::coordinator::Claim claim;
  claim.pid = getpid();
  claim.start_ticks = self->start_ticks;
  claim.boot_id = BootId();
  claim.unix_ms = UnixMs();
  return MakeClaim(directory_, claim);
}

bool Supervisor::StartMpirun() {
  // --guard: should this process be killed, the kernel takes mpirun (and mpirun's end its ranks)
  // along.
  Program mpirun{.argv = {self_path_, "--guard", "--"}, .log = directory_ + "/mpirun.log"};
  mpirun.argv.insert(mpirun.argv.end(), launch_.argv.begin(), launch_.argv.end());
  const absl::StatusOr<pid_t> pid = Spawn(mpirun);
  if (pid.ok()) {
    mpirun_ = *pid;
    return true;
  }
  record_.exit_code = 127;
  record_.reason = std::string(pid.status().message());
  return false;
}

void Supervisor::WatchUntilExit() {
  while (!exited_) {
    pollfd wait = {signal_fd_, POLLIN, 0};
    poll(&wait, 1, kPollMs);
    TakeSignals();
    Reap();
    if (exited_) break;
    TakeRequest();
    Escalate();
  }
}

void Supervisor::TakeSignals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    if (info.ssi_signo != SIGTERM && info.ssi_signo != SIGINT && info.ssi_signo != SIGHUP) continue;
    if (!deadline_ms_) deadline_ms_ = MonotonicMs() + kTerminatedGraceMs;
  }
}

void Supervisor::TakeRequest() {
  const auto request = ReadStopRequest(directory_);
  if (!request.ok() || !request->has_value()) return;
  if ((*request)->deadline_unix_ms == request_seen_) return;
  request_seen_ = (*request)->deadline_unix_ms;
  record_.stop_requested = true;
  if ((*request)->dump_stacks && !dumped_) DumpStacks();
  const int64_t left_ms = std::max<int64_t>(request_seen_ - UnixMs(), 0);
  const int64_t deadline = MonotonicMs() + left_ms;
  deadline_ms_ = deadline_ms_ ? std::min(*deadline_ms_, deadline) : deadline;
}

/// USR2 (checkpoint and exit) at once, TERM at the deadline, KILL soon after.
void Supervisor::Escalate() {
  if (!deadline_ms_) return;
  const int64_t now = MonotonicMs();
  if (now < *deadline_ms_) {
    SendNotice(now);
    return;
  }
  record_.forced = true;
  if (term_sent_ms_ == 0) {
    term_sent_ms_ = now;
    kill(mpirun_, SIGCONT);
    kill(mpirun_, SIGTERM);
  } else if (now - term_sent_ms_ >= kTermGraceMs) {
    KillSession();
  }
}

void Supervisor::SendNotice(int64_t now_ms) {
  if (notice_sent_ms_ != 0 && now_ms - notice_sent_ms_ < kRepeatNoticeMs) return;
  // Until mpirun has children it may not listen yet, and the signal would end it.
  for (const ProcessStat& process : ProcessesOfSession(getpid())) {
    if (process.parent == mpirun_) {
      notice_sent_ms_ = now_ms;
      kill(mpirun_, SIGUSR2);
      return;
    }
  }
}

/// What each thread of the attempt was doing, as far as the kernel tells an ordinary user.
void Supervisor::DumpStacks() {
  dumped_ = true;
  std::string text;
  for (const ProcessStat& process : ProcessesOfSession(getpid())) {
    if (process.pid == getpid()) continue;
    absl::StrAppend(&text, "== pid ", process.pid, " ", process.name, " state ",
                    std::string(1, process.state), "\n");
    for (const char* file : {"wchan", "syscall", "stack"}) {
      const auto contents = ReadFileIfExists(absl::StrCat("/proc/", process.pid, "/", file));
      if (contents.ok() && contents->has_value()) {
        absl::StrAppend(&text, file, ": ", **contents, "\n");
      }
    }
  }
  (void)WriteFileDurably(directory_ + "/hang.txt", text, 0600);
}

void Supervisor::Reap() {
  int status = 0;
  while (true) {
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    if (pid != mpirun_) continue;
    exited_ = true;
    if (WIFEXITED(status)) record_.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) {
      record_.signal = WTERMSIG(status);
      record_.exit_code = 128 + record_.signal;
    }
  }
}

void Supervisor::KillSession() {
  while (true) {
    bool left = false;
    for (const ProcessStat& process : ProcessesOfSession(getpid())) {
      if (process.pid == getpid()) continue;
      left = true;
      kill(process.pid, SIGKILL);
    }
    if (mpirun_ != 0) Reap();
    if (!left) return;
    poll(nullptr, 0, 20);
  }
}

/// The outcome must not be lost to a full disk: tries until it is written.
void Supervisor::WriteRecord() {
  record_.ended_unix_ms = UnixMs();
  record_.ranks = ReadRankExits(directory_, launch_.ranks);
  ReadFailureFromLog(directory_ + "/mpirun.log", &record_);
  while (true) {
    const absl::Status status = WriteExitRecord(directory_, record_);
    if (status.ok() || access(directory_.c_str(), F_OK) != 0) return;
    std::fprintf(stderr, "ela-supervisor: %s\n", status.ToString().c_str());
    poll(nullptr, 0, 1000);
  }
}

}  // namespace

int Supervise(const std::string& attempt_dir, const std::string& self_path, int ready_fd) {
  return Supervisor(attempt_dir, self_path).Run(ready_fd);
}

int GuardAndRun(const std::vector<std::string>& argv, bool hold_usr2) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (hold_usr2) {
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGUSR2);
    sigprocmask(SIG_BLOCK, &held, nullptr);
  }
  std::vector<char*> pointers;
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
  std::fprintf(stderr, "ela-supervisor: cannot run %s: %s\n", pointers[0], std::strerror(errno));
  return 127;
}

}  // namespace ela::coordinator
