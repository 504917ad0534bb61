// A trainer without a model: it speaks to the coordinator, writes metrics, logs, checkpoints and
// exit records as ela-trainer does, and fails as the labels of its job say:
//   step-ms: 20          time of a step
//   die: RANK-STEP-HOW   HOW is kill, segv, exit<code>, full (the disk), vanish, stop (SIGSTOP) or
//                        spin (no steps)
//   die-attempts: N      only the first N attempts die (0: all)
//   deaf: yes            USR2 and TERM are ignored
//   no-checkpoint: yes   never commits one
//   disk-full: STEP      from this step on no checkpoint can be written; it waits for the last one

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/supervisor/files.h"
#include "coordinator/supervisor/process.h"
#include "proto/job/job_file.h"
#include "trainer/coordinator_client/coordinator_client.h"

namespace ela {
namespace {

using coordinator::ReadFileIfExists;
using coordinator::WriteFileDurably;

constexpr int kStopped = 75;
constexpr int kSuperseded = 76;

int64_t IntegerIn(const std::string& path) {
  const auto text = ReadFileIfExists(path);
  int64_t value = 0;
  if (text.ok() && text->has_value()) (void)absl::SimpleAtoi(**text, &value);
  return value;
}

class ScriptedTrainer {
 public:
  ScriptedTrainer(std::map<std::string, std::string> options, int rank, int ranks)
      : options_(std::move(options)), rank_(rank), ranks_(ranks) {}

  int Run() {
    const auto job = job::LoadJobFile(options_["job"]);
    if (!job.ok()) return Leave(93, "user_error", std::string(job.status().message()));
    for (const auto& [name, value] : job->metadata().labels()) script_[name] = value;
    run_dir_ = options_["run-dir"];
    attempt_dir_ = run_dir_ + "/attempts/" + options_["attempt"];
    (void)absl::SimpleAtoi(options_["attempt"], &attempt_);
    steps_ = job->spec().training().steps();
    checkpoint_every_ = job->spec().checkpoint().every_steps();
    log_.open(absl::StrCat(attempt_dir_, "/logs/rank-", rank_, ".log"), std::ios::app);
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGUSR2);
    sigaddset(&signals_, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals_, nullptr);
    first_step_ = IntegerIn(run_dir_ + "/checkpoints/latest");
    log_ << "rank " << rank_ << " of " << ranks_ << " from step " << first_step_ << std::endl;
    return rank_ == 0 ? Lead() : Follow();
  }

 private:
  int Lead() {
    auto client = trainer::CoordinatorClient::Connect(options_["coordinator"], options_["job-id"],
                                                      attempt_, options_["token-file"]);
    if (!client.ok()) return Leave(93, "user_error", std::string(client.status().message()));
    client_ = std::move(*client);
    std::vector<v1::RankInfo> infos;
    for (int rank = 0; rank < ranks_; ++rank) {
      v1::RankInfo& info = infos.emplace_back();
      info.set_rank(rank);
      info.set_host("localhost");
      info.set_pid(rank == 0 ? getpid() : 0);
      info.set_metrics_address(absl::StrCat("127.0.0.1:", 20000 + rank));
    }
    if (!client_->Hello(infos, first_step_).ok()) {
      return Leave(client_->superseded() ? kSuperseded : 1, "superseded", "refused");
    }
    client_->SetPhase("step");
    KeepMetricsUpTo(first_step_);
    for (int64_t step = first_step_ + 1; step <= steps_; ++step) {
      const bool asked = Step(step) || client_->checkpoint_and_exit();
      if (client_->superseded()) return Leave(kSuperseded, "superseded", "a newer attempt exists");
      Report(step);
      const bool due = checkpoint_every_ > 0 && step % checkpoint_every_ == 0;
      const bool last = asked || step == steps_;
      if ((due || last) && !Commit(step) && last) AwaitSpace();
      if (asked && step < steps_) {
        client_->Goodbye(v1::OUTCOME_PREEMPTED, "asked to stop");
        return Leave(kStopped, "stopped", "asked to stop");
      }
    }
    client_->Goodbye(v1::OUTCOME_OK, "done");
    return Leave(0, "ok", "");
  }

  int Follow() {
    for (int64_t step = first_step_ + 1;; ++step) {
      Step(step);
      // Rank 0 says when it is over.
      const auto over = ReadFileIfExists(attempt_dir_ + "/over");
      if (over.ok() && over->has_value()) {
        const int code = static_cast<int>(IntegerIn(attempt_dir_ + "/over"));
        return Leave(code, code == 0 ? "ok" : "stopped", "");
      }
    }
  }

  /// True when a signal asked for a checkpoint and an exit.
  bool Step(int64_t step) {
    MaybeDie(step);
    int64_t step_ms = 20;
    if (script_.contains("step-ms")) (void)absl::SimpleAtoi(script_["step-ms"], &step_ms);
    const timespec wait{step_ms / 1000, step_ms % 1000 * 1'000'000};
    const bool signalled = sigtimedwait(&signals_, nullptr, &wait) > 0;
    if (signalled) log_ << "rank " << rank_ << " is asked to stop" << std::endl;
    return signalled && !script_.contains("deaf");
  }

  void MaybeDie(int64_t step) {
    if (!script_.contains("die")) return;
    const std::vector<std::string> parts = absl::StrSplit(script_["die"], '-');
    int rank = 0;
    int64_t at = 0;
    int64_t attempts = 0;
    if (script_.contains("die-attempts"))
      (void)absl::SimpleAtoi(script_["die-attempts"], &attempts);
    if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &rank) ||
        !absl::SimpleAtoi(parts[1], &at)) {
      std::exit(Leave(93, "user_error", "label die: not RANK-STEP-HOW"));
    }
    if (rank != rank_ || step < at || (attempts > 0 && attempt_ > attempts)) return;
    const std::string& how = parts[2];
    log_ << "rank " << rank_ << " dies at step " << step << ": " << how << std::endl;
    int code = 0;
    if (how == "kill") raise(SIGKILL);
    if (how == "segv") {
      signal(SIGSEGV, SIG_DFL);
      raise(SIGSEGV);
    }
    if (how == "stop") raise(SIGSTOP);
    if (how == "spin") {
      while (true) pause();
    }
    if (how == "full") std::exit(Leave(1, "disk_full", "no space"));
    if (how == "vanish") _exit(7);  // without an exit record
    if (how.starts_with("exit") && absl::SimpleAtoi(how.substr(4), &code)) {
      std::exit(Leave(code, code == 93 ? "user_error" : "error", "as the script says"));
    }
  }

  void Report(int64_t step) {
    v1::Progress& progress = progress_;
    progress.set_step(step);
    progress.set_loss(5.0 / (1.0 + 0.01 * static_cast<double>(step)));
    progress.set_tokens(step * 100);
    progress.set_step_seconds(0.02);
    progress.set_tokens_per_second(5000);
    std::ofstream metrics(run_dir_ + "/metrics.jsonl", std::ios::app);
    metrics << "{\"step\":" << step << ",\"loss\":" << progress.loss() << ",\"aux_loss\":0"
            << ",\"grad_norm\":1,\"lr\":0.001,\"tokens\":" << progress.tokens()
            << ",\"step_seconds\":0.02}" << std::endl;
    log_ << "step " << step << " loss " << progress.loss() << std::endl;
    client_->ReportStep(progress);
  }

  void KeepMetricsUpTo(int64_t step) {
    std::ifstream file(run_dir_ + "/metrics.jsonl");
    std::string kept;
    std::string line;
    for (int64_t number = 1; number <= step && std::getline(file, line); ++number) {
      kept += line + "\n";
    }
    file.close();
    if (step > 0 || !kept.empty()) (void)WriteFileDurably(run_dir_ + "/metrics.jsonl", kept, 0600);
  }

  [[noreturn]] static void AwaitSpace() {
    while (true) pause();
  }

  /// False: the disk is full.
  bool Commit(int64_t step) {
    if (script_.contains("no-checkpoint")) return true;
    int64_t full_from = steps_ + 1;
    if (script_.contains("disk-full")) (void)absl::SimpleAtoi(script_["disk-full"], &full_from);
    if (step >= full_from) {
      if (progress_.checkpoint_failing_since_step() == 0) {
        progress_.set_checkpoint_failing_since_step(step);
        progress_.set_checkpoint_error("no space for it");
      }
      client_->ReportStep(progress_);
      return false;
    }
    client_->SetPhase("checkpoint");
    if (client_->CommitCheckpoint(step, 100, false).ok()) {
      std::filesystem::create_directories(run_dir_ + "/checkpoints");
      (void)WriteFileDurably(run_dir_ + "/checkpoints/latest", absl::StrCat(step), 0600);
      (void)client_->CommitCheckpoint(step, 100, true);
    }
    client_->SetPhase("step");
    return true;
  }

  int Leave(int code, const std::string& outcome, const std::string& reason) {
    (void)WriteFileDurably(
        absl::StrCat(attempt_dir_, "/rank-", rank_, ".exit.json"),
        absl::StrCat("{\"rank\":", rank_, ",\"outcome\":\"", outcome, "\",\"exit_code\":", code,
                     ",\"reason\":\"", reason, "\",\"unix_ms\":", coordinator::UnixMs(), "}"),
        0600);
    if (rank_ == 0) (void)WriteFileDurably(attempt_dir_ + "/over", absl::StrCat(code), 0600);
    return code;
  }

  std::map<std::string, std::string> options_;
  std::map<std::string, std::string> script_;
  const int rank_;
  const int ranks_;
  std::string run_dir_;
  std::string attempt_dir_;
  int32_t attempt_ = 0;
  int64_t steps_ = 0;
  int64_t checkpoint_every_ = 0;
  int64_t first_step_ = 0;
  v1::Progress progress_;
  sigset_t signals_;
  std::ofstream log_;
  std::unique_ptr<trainer::CoordinatorClient> client_;
};

int Variable(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

}  // namespace
}  // namespace ela

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[std::string(argv[i]).substr(2)] = argv[i + 1];
  return ela::ScriptedTrainer(std::move(options), ela::Variable("OMPI_COMM_WORLD_RANK", 0),
                              ela::Variable("OMPI_COMM_WORLD_SIZE", 1))
      .Run();
}
