// ela-supervisor: started by the coordinator's local launcher, never by hand.

#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "coordinator/supervisor/supervise.h"
#include "proto/program/version.h"

namespace {

constexpr char kHelp[] =
    "ela-supervisor is started by ela-coordinator; see ela-coordinator --help\n"
    "  --attempt-dir DIR [--ready-fd N]              watches over the attempt described in DIR\n"
    "  --guard [--hold-usr2] -- COMMAND ARGS...      becomes COMMAND, which dies with its parent\n"
    "  --version\n";

int Misused(const char* what, const char* word) {
  std::fprintf(stderr, "ela-supervisor: %s%s; see ela-supervisor --help\n", what, word);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::string attempt_dir;
  int ready_fd = -1;
  bool guard = false;
  bool hold_usr2 = false;
  std::vector<std::string> command;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--") {
      command.assign(argv + i + 1, argv + argc);
      break;
    }
    if (argument == "--help") {
      std::fputs(kHelp, stdout);
      return 0;
    }
    if (argument == "--version") {
      std::puts(ela::VersionLine("ela-supervisor").c_str());
      return 0;
    }
    if (argument == "--guard") {
      guard = true;
    } else if (argument == "--hold-usr2") {
      hold_usr2 = true;
    } else if (argument == "--attempt-dir" && i + 1 < argc) {
      attempt_dir = argv[++i];
    } else if (argument == "--ready-fd" && i + 1 < argc) {
      if (!absl::SimpleAtoi(argv[++i], &ready_fd))
        return Misused("--ready-fd: no number: ", argv[i]);
    } else {
      return Misused("unknown option, or one without its value: ", argv[i]);
    }
  }
  if (guard && !command.empty()) return ela::coordinator::GuardAndRun(command, hold_usr2);
  if (guard || attempt_dir.empty())
    return Misused("needs --attempt-dir DIR, or --guard -- COMMAND", "");
  char self[4096] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0) {
    std::perror("ela-supervisor: /proc/self/exe");
    return 1;
  }
  return ela::coordinator::Supervise(attempt_dir, self, ready_fd);
}
