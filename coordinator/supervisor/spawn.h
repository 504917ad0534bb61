// Starts a program by argument list. posix_spawn, since a process that uses gRPC must not fork.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::coordinator {

struct Program {
  std::vector<std::string> argv;         // the path of the program first
  std::vector<std::string> environment;  // NAME=VALUE; empty: this process's own
  std::string log;                       // both outputs are appended to this file
  bool own_session = false;
  int pass_fd = -1;  // becomes descriptor kPassedFd; negative: none
};

constexpr int kPassedFd = 3;

/// Reads from /dev/null, with no signal blocked or ignored. Unavailable: it cannot be started.
absl::StatusOr<pid_t> Spawn(const Program& program);

}  // namespace ela::coordinator
