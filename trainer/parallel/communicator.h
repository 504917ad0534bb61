// Communicator: the collectives that training needs, over MPI (CPU), NCCL (CUDA) or threads of one
// process (tests). Only data moves here: no back end does arithmetic, so that every sum has one
// fixed order (ordered_sum.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/status_macros.h"

namespace ela::trainer {

/// Calls, bytes and seconds by (op, axis), read by the metrics. Thread-safe. One per rank; the
/// groups split from a communicator share its statistics.
class CommStatistics {
 public:
  struct Entry {
    int64_t calls = 0;
    int64_t bytes = 0;   // received from other ranks
    double seconds = 0;  // that the caller spent in the call and in its Wait: what was not hidden
  };
  using Table = std::map<std::pair<std::string, std::string>, Entry>;  // (op, axis)

  void Add(const std::string& op, const std::string& axis, int64_t calls, int64_t bytes,
           double seconds) {
    std::lock_guard<std::mutex> lock(mutex_);
    Entry& entry = table_[{op, axis}];
    entry.calls += calls;
    entry.bytes += bytes;
    entry.seconds += seconds;
  }
  Table Snapshot() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return table_;
  }

 private:
  mutable std::mutex mutex_;
  Table table_;  // under mutex_
};

/// A collective under way. Wait returns its status; on a CUDA back end it makes the compute stream
/// wait instead of the host.
class Pending {
 public:
  virtual ~Pending() = default;  // waits if nobody has
  virtual absl::Status Wait() = 0;
};

/// A group of ranks. Every member must make the same calls in the same order. Buffers are in the
/// memory of the back end's device and must stay until the call (or its Pending) is done. Traffic
/// is counted in bytes per (op, axis).
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// What the group is for: "world", "data", "sequence", "expert", "expert_data". The label of its
  /// metrics.
  virtual const std::string& axis() const = 0;
  /// The counters of this communicator and of all that are split from it; null if not counted.
  virtual CommStatistics* statistics() const = 0;

  /// recv holds size() x bytes, in rank order. send may be this rank's own part of recv. A call
  /// without Start is one that is waited for at once.
  virtual absl::Status AllGather(void* recv, const void* send, size_t bytes) {
    ELA_ASSIGN_OR_RETURN(const std::unique_ptr<Pending> pending, AllGatherStart(recv, send, bytes));
    return pending->Wait();
  }
  virtual absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send,
                                                                  size_t bytes) = 0;
  /// Part p of send (send_bytes[p], contiguous in rank order) goes to rank p; recv_bytes[p] come
  /// from rank p likewise.
  virtual absl::Status AllToAllV(void* recv, const std::vector<size_t>& recv_bytes,
                                 const void* send, const std::vector<size_t>& send_bytes) {
    ELA_ASSIGN_OR_RETURN(const std::unique_ptr<Pending> pending,
                         AllToAllVStart(recv, recv_bytes, send, send_bytes));
    return pending->Wait();
  }
  virtual absl::StatusOr<std::unique_ptr<Pending>> AllToAllVStart(
      void* recv, const std::vector<size_t>& recv_bytes, const void* send,
      const std::vector<size_t>& send_bytes) = 0;
  /// One step of a ring: sends to rank `to`, receives from rank `from`.
  virtual absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes,
                                                                 int from, const void* send,
                                                                 size_t send_bytes, int to) = 0;
  virtual absl::Status Broadcast(void* data, size_t bytes, int root) = 0;
  virtual absl::Status Barrier() = 0;

  /// Collective: ranks with equal color form a group, ordered by their rank here.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color,
                                                              const std::string& axis) = 0;
  /// Ends the whole job at once, as far as the back end can (MPI_Abort); for a rank that can't go
  /// on.
  virtual void Abort(int exit_code) = 0;
};

enum class CommunicatorKind : uint8_t {
  kMpi,    // processes started by mpirun, srun or alike; host memory
  kNccl,   // the same processes; device memory
  kLocal,  // this process alone: a world of one rank (more of them: RunLocalRanks of
           // local_communicator.h)
};

struct CommunicatorOptions {
  int expected_world = 0;                      // data x sequence of the job; 0: any
  std::shared_ptr<CommStatistics> statistics;  // null: not counted
  /// A longer message is cut into parts of this size: MPI counts in int.
  size_t max_message_bytes = size_t{1} << 30;
  /// Of kMpi: a rank that waits for another for longer gets Unavailable. 0: it waits for ever,
  /// as mpirun ends all ranks when one dies.
  double timeout_seconds = 0;
};

/// The world of this process, axis "world". FailedPrecondition if the world is not the expected one
/// (a process that was not started by the matching mpirun is a world of its own, and says so here
/// instead of training alone), or if this build has no such back end. MPI is started by the first
/// call and finished when the last communicator is gone: on an error that the other ranks don't
/// share call Abort instead of unwinding.
absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(CommunicatorKind kind,
                                                               const CommunicatorOptions& options);

}  // namespace ela::trainer
