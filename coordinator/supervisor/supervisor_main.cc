// ela-supervisor: started by the coordinator's local launcher, never by hand.
//   ela-supervisor --attempt-dir DIR [--ready-fd N]           watches over the attempt described in
//   DIR ela-supervisor --guard [--hold-usr2] -- COMMAND ARGS...   becomes COMMAND, which dies with
//   its parent

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/supervisor/supervise.h"

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
    if (argument == "--guard") guard = true;
    if (argument == "--hold-usr2") hold_usr2 = true;
    if (argument == "--attempt-dir" && i + 1 < argc) attempt_dir = argv[++i];
    if (argument == "--ready-fd" && i + 1 < argc) ready_fd = std::atoi(argv[++i]);
  }
  if (guard && !command.empty()) return ela::coordinator::GuardAndRun(command, hold_usr2);
  if (guard || attempt_dir.empty()) {
    std::fprintf(stderr,
                 "ela-supervisor is started by ela-coordinator; see ela-coordinator --help\n");
    return 2;
  }
  char self[4096] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0) {
    std::perror("ela-supervisor: /proc/self/exe");
    return 1;
  }
  return ela::coordinator::Supervise(attempt_dir, self, ready_fd);
}
