// Requests to stop by USR2 (pause, preemption: mpirun and Slurm pass it on) or TERM. The signals
// are blocked in every thread and taken by one thread with sigwait, so no code runs in a handler; a
// second request changes nothing: the checkpoint goes on.
#pragma once

#include <atomic>
#include <thread>

namespace ela::trainer {

class StopSignal {
 public:
  /// Blocks the signals for this thread and all that it starts later: create it before MPI_Init and
  /// before any other thread.
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const { return requested_; }

 private:
  std::atomic<bool> requested_{false};
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace ela::trainer
