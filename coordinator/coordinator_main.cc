// ela-coordinator: the service that queues, launches, watches and restarts training jobs.

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#include "coordinator/server.h"
#include "proto/program/command_line.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace {

std::string OwnDirectory() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

std::string DefaultStateDir() {
  const char* state_home = std::getenv("XDG_STATE_HOME");
  if (state_home != nullptr && *state_home != '\0') return std::string(state_home) + "/ela";
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + "/.local/state/ela";
}

/// What is wrong with the text; nothing: it is in milliseconds now.
std::string SecondsToMs(std::string& text) {
  int64_t seconds = 0;
  if (!CLI::detail::lexical_cast(text, seconds) || seconds < 1) return "not a number of seconds";
  text = std::to_string(seconds * 1000);
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  ela::coordinator::ServerOptions options;
  options.state_dir = DefaultStateDir();
  options.program_dir = OwnDirectory();
  options.settings.slots = std::max<int64_t>(std::thread::hardware_concurrency(), 2);
  CLI::App app(
      "Queues, launches, watches and restarts training jobs. Keeps everything in the state "
      "directory.",
      "ela-coordinator");
  app.add_option("--listen", options.listen, "Address for ela and the ranks, loopback only")
      ->capture_default_str();
  app.add_option("--metrics-listen", options.metrics_listen,
                 "Address for Prometheus: /metrics, /sd, /healthz; empty: none")
      ->capture_default_str();
  app.add_option("--state-dir", options.state_dir, "Jobs, their runs and the store")
      ->capture_default_str();
  app.add_option("--slots", options.settings.slots, "Ranks that may run at once on this machine")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--program-dir", options.program_dir, "Where ela-trainer is")
      ->capture_default_str();
  app.add_option("--hang-seconds", options.settings.hang_floor_ms,
                 "Least time without a sign of work that counts as a hang")
      ->default_str("60")
      ->transform(CLI::Validator(SecondsToMs, "SECONDS"));
  if (const auto exit = ela::ParseCommandLine(&app, "ela-coordinator", argc, argv)) return *exit;
  options.state_dir = std::filesystem::absolute(options.state_dir).lexically_normal().string();
  options.program_dir = std::filesystem::absolute(options.program_dir).lexically_normal().string();

  // The supervisor belongs to the coordinator; the trainer may be another build.
  if (!std::filesystem::exists(options.program_dir + "/ela-supervisor")) {
    options.supervisor_dir = OwnDirectory();
  }
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // errors are told below, in one line
  spdlog::set_default_logger(spdlog::stderr_color_mt("ela-coordinator"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
  signal(SIGPIPE, SIG_IGN);
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);  // before any thread: all inherit it

  auto server = ela::coordinator::CoordinatorServer::Start(options);
  if (!server.ok()) {
    std::fprintf(stderr, "ela-coordinator: %s\n", std::string(server.status().message()).c_str());
    return 1;
  }
  const std::string& metrics = (*server)->metrics_address();
  spdlog::info("listening on {}, {}, state in {}", (*server)->address(),
               metrics.empty() ? "no metrics" : "metrics on http://" + metrics + "/metrics",
               options.state_dir);
  int received = 0;
  sigwait(&stop, &received);
  int running = 0;
  for (const auto& record : (*server)->core().jobs->Unfinished()) {
    running += ela::coordinator::ActiveAttempt(*record) != nullptr;
  }
  server->reset();
  spdlog::info("stopped; {} running jobs run on and are taken up again at the next start", running);
  return 0;
}
