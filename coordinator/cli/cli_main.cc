// ela: the command line. Everything else is in cli.h.

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "coordinator/cli/cli.h"

namespace {

std::atomic<bool> interrupted{false};

// The first Ctrl-C asks the command to end in order; the second one ends it at once.
void OnInterrupt(int) {
  if (interrupted.exchange(true)) _exit(ela::cli::kDetached);
}

ela::cli::TerminalSize MeasureTerminal() {
  winsize size{};
  ela::cli::TerminalSize result;
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0) {
    result.columns = size.ws_col;
    result.rows = size.ws_row;
  } else if (const char* columns = std::getenv("COLUMNS");
             columns != nullptr && std::atoi(columns) > 0) {
    result.columns = std::atoi(columns);
  }
  return result;
}

int Exec(const std::string& path, const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  return errno;
}

// Ctrl-C must end a unary call too: it is short, and nothing is lost by leaving it.
void InstallInterrupt() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGPIPE, SIG_DFL);  // `ela list | head` ends quietly
}

}  // namespace

int main(int argc, char** argv) {
  ela::cli::Io io;
  io.out = &std::cout;
  io.err = &std::cerr;
  io.in = &std::cin;
  io.out_is_terminal = isatty(STDOUT_FILENO) == 1;
  io.terminal_size = MeasureTerminal;
  io.now_unix_ms = [] {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  };
  io.env = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  io.interrupted = &interrupted;
  io.exec = Exec;
  std::error_code error;
  io.working_dir = std::filesystem::current_path(error).string();
  io.program_dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // what went wrong is in the status of a call
  InstallInterrupt();
  const int code = ela::cli::Run({argv + 1, argv + argc}, io);
  std::cout.flush();
  return code;
}
