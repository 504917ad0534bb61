// Runs checkpoint-worker as a process of its own, so that a test can kill it or read what it
// acknowledged.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ela::checkpoints {

class WorkerProcess {
 public:
  explicit WorkerProcess(std::vector<std::string> arguments) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    std::vector<char*> argv;
    arguments.insert(arguments.begin(), ELA_CHECKPOINT_WORKER);
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    EXPECT_EQ(::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    output_ = ::fdopen(ends[0], "r");
  }
  ~WorkerProcess() {
    if (pid_ > 0) Kill();
    ::fclose(output_);
  }
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  /// Blocks until the worker has written a line; empty once it has ended and all is read.
  std::string ReadLine() {
    std::string line;
    for (int c = ::fgetc(output_); c != EOF && c != '\n'; c = ::fgetc(output_)) {
      line.push_back(static_cast<char>(c));
    }
    return line;
  }
  /// The last whole line it wrote, after its end.
  std::string ReadLastLine(std::string last) {
    for (std::string line = ReadLine(); !line.empty(); line = ReadLine()) last = line;
    return last;
  }
  void Kill() {
    ::kill(pid_, SIGKILL);
    Wait();
  }
  /// The exit code, -1 if a signal ended it.
  int Wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
  FILE* output_ = nullptr;
};

}  // namespace ela::checkpoints
