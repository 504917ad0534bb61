// Everything through which a command touches the world, so that tests run commands in their own
// process.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <istream>
#include <ostream>
#include <string>
#include <vector>

namespace ela::cli {

/// Exit codes of `ela`, as documented.
enum ExitCode : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,  // unknown option, bad job file
  kNotFound = 3,
  kUnreachable = 4,  // no coordinator there, or it does not let us in
  kTimedOut = 5,
  kJobFailed = 10,
  kJobCancelled = 11,
  kDetached = 130,  // Ctrl-C
};

struct TerminalSize {
  int columns = 80;
  int rows = 24;
};

struct Io {
  std::ostream* out = nullptr;  // data
  std::ostream* err = nullptr;  // messages
  std::istream* in = nullptr;
  bool out_is_terminal = false;
  std::function<TerminalSize()> terminal_size;
  std::function<int64_t()> now_unix_ms;
  std::function<std::string(const char* name)> env;  // empty: not set
  std::atomic<bool>* interrupted = nullptr;          // set by Ctrl-C
  std::string working_dir;                           // relative paths in a job file start here
  std::string program_dir;                           // where the sibling programs lie
  /// Replaces this process; returns only if that failed, with errno.
  std::function<int(const std::string& path, const std::vector<std::string>& argv)> exec;
};

}  // namespace ela::cli
