#include "coordinator/supervisor/process.h"

#include <dirent.h>
#include <time.h>

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/supervisor/files.h"

namespace ela::coordinator {
namespace {

int64_t ClockMs(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

}  // namespace

std::optional<ProcessStat> ReadProcessStat(pid_t pid) {
  const auto text = ReadFileIfExists(absl::StrCat("/proc/", pid, "/stat"));
  if (!text.ok() || !text->has_value()) return std::nullopt;
  // "pid (name) state ppid pgrp session ..."; the name may hold spaces and parentheses.
  const std::string& line = **text;
  const size_t open = line.find('(');
  const size_t close = line.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open) return std::nullopt;
  const std::vector<std::string> fields =
      absl::StrSplit(line.substr(close + 1), ' ', absl::SkipEmpty());
  constexpr size_t kState = 0, kParent = 1, kSession = 3, kStart = 19;
  if (fields.size() <= kStart) return std::nullopt;
  ProcessStat stat;
  stat.pid = pid;
  stat.name = line.substr(open + 1, close - open - 1);
  stat.state = fields[kState][0];
  if (!absl::SimpleAtoi(fields[kParent], &stat.parent) ||
      !absl::SimpleAtoi(fields[kSession], &stat.session) ||
      !absl::SimpleAtoi(fields[kStart], &stat.start_ticks)) {
    return std::nullopt;
  }
  return stat;
}

std::vector<ProcessStat> ProcessesOfSession(pid_t session) {
  std::vector<ProcessStat> found;
  DIR* directory = opendir("/proc");
  if (directory == nullptr) return found;
  while (const dirent* entry = readdir(directory)) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid)) continue;
    const std::optional<ProcessStat> stat = ReadProcessStat(pid);
    if (stat && stat->session == session && stat->state != 'Z' && stat->state != 'X') {
      found.push_back(*stat);
    }
  }
  closedir(directory);
  return found;
}

bool IsAlive(pid_t pid, int64_t start_ticks) {
  const std::optional<ProcessStat> stat = ReadProcessStat(pid);
  return stat && stat->start_ticks == start_ticks && stat->state != 'Z' && stat->state != 'X';
}

std::string BootId() {
  const auto text = ReadFileIfExists("/proc/sys/kernel/random/boot_id");
  if (!text.ok() || !text->has_value()) return "";
  return std::string(absl::StripAsciiWhitespace(**text));
}

int64_t MonotonicMs() { return ClockMs(CLOCK_MONOTONIC); }
int64_t UnixMs() { return ClockMs(CLOCK_REALTIME); }

}  // namespace ela::coordinator
