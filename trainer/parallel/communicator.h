// Communicator: the collectives that training needs, over MPI (CPU), NCCL (CUDA) or threads of one process (tests).
// Only data moves here: no back end does arithmetic, so that every sum has one fixed order (ordered_sum.h).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::trainer {

/// A collective under way. Wait returns its status; on a CUDA back end it makes the compute stream wait instead of the host.
class Pending {
 public:
  virtual ~Pending() = default;  // waits if nobody has
  virtual absl::Status Wait() = 0;
};

/// A group of ranks. Every member must make the same calls in the same order. Buffers are in the memory of the back end's
/// device and must stay until the call (or its Pending) is done. Traffic is counted in bytes per (op, axis).
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// What the group is for: "world", "data", "sequence", "expert", "expert_data". The label of its metrics.
  virtual const std::string& axis() const = 0;

  /// recv holds size() x bytes, in rank order.
  virtual absl::Status AllGather(void* recv, const void* send, size_t bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send, size_t bytes) = 0;
  /// Part p of send (send_bytes[p], contiguous in rank order) goes to rank p; recv_bytes[p] come from rank p likewise.
  virtual absl::Status AllToAllV(void* recv, const std::vector<size_t>& recv_bytes, const void* send,
                                 const std::vector<size_t>& send_bytes) = 0;
  /// One step of a ring: sends to rank `to`, receives from rank `from`.
  virtual absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes, int from,
                                                                 const void* send, size_t send_bytes, int to) = 0;
  virtual absl::Status Broadcast(void* data, size_t bytes, int root) = 0;
  virtual absl::Status Barrier() = 0;

  /// Collective: ranks with equal color form a group, ordered by their rank here.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, const std::string& axis) = 0;
  /// Ends the whole job at once, as far as the back end can (MPI_Abort); for a rank that can't go on.
  virtual void Abort(int exit_code) = 0;
};

/// Bytes and seconds by (op, axis), read by the metrics. Thread-safe.
struct CommStatistics;

}  // namespace ela::trainer
