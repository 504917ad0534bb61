// Processes as /proc shows them. A pid alone names nothing for long: pid, start time and boot id
// together do.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ela::coordinator {

struct ProcessStat {
  pid_t pid = 0;
  pid_t parent = 0;
  pid_t session = 0;
  char state = '?';         // R, S, D, T (stopped), Z (zombie), ...
  int64_t start_ticks = 0;  // since boot, in clock ticks
  std::string name;
};

/// nullopt when there is no such process.
std::optional<ProcessStat> ReadProcessStat(pid_t pid);

/// Every process of a session, zombies excepted.
std::vector<ProcessStat> ProcessesOfSession(pid_t session);

/// Whether that very process runs (a zombie does not).
bool IsAlive(pid_t pid, int64_t start_ticks);

/// Changes with every boot; empty when the system does not say.
std::string BootId();

/// Milliseconds of CLOCK_MONOTONIC, for the supervisor's own deadlines.
int64_t MonotonicMs();
int64_t UnixMs();

}  // namespace ela::coordinator
