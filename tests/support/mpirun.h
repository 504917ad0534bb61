// Runs a program under the mpirun of the MPI that this tree builds with.
#pragma once

#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

namespace ela::testing {

struct MpiRun {
  int exit_code = -1;  // of mpirun; -1: it did not run
  std::string output;  // of all ranks and of mpirun itself
};

/// `arguments`: the program and what it gets. Ends after two minutes at the latest.
inline MpiRun RunProcess(std::vector<std::string> arguments) {
  int ends[2];
  if (::pipe(ends) != 0) return {};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int spawned = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  MpiRun run;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) run.output.append(buffer, n);
  ::close(ends[0]);
  int status = 0;
  if (spawned == 0 && ::waitpid(pid, &status, 0) == pid && WIFEXITED(status)) {
    run.exit_code = WEXITSTATUS(status);
  }
  return run;
}

inline MpiRun RunUnderMpi(int ranks, const std::vector<std::string>& program) {
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  std::vector<std::string> arguments = {
      "mpirun.openmpi",     "--oversubscribe", "--bind-to", "none", "--timeout", "120", "-n",
      std::to_string(ranks)};
  arguments.insert(arguments.end(), program.begin(), program.end());
  return RunProcess(std::move(arguments));
}

}  // namespace ela::testing
