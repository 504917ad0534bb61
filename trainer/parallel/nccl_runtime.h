// NCCL as one process uses it: the library, loaded at run time, and the thread that watches over
// what is enqueued.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/device.h"

namespace ela::trainer {

/// The functions of libnccl.so.2 that are used.
struct NcclLibrary {
  decltype(&ncclGetUniqueId) GetUniqueId;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&ncclCommAbort) CommAbort;
  decltype(&ncclCommFinalize) CommFinalize;
  decltype(&ncclCommDestroy) CommDestroy;
  decltype(&ncclGetErrorString) GetErrorString;
  decltype(&ncclGroupStart) GroupStart;
  decltype(&ncclGroupEnd) GroupEnd;
  decltype(&ncclAllGather) AllGather;
  decltype(&ncclBroadcast) Broadcast;
  decltype(&ncclSend) Send;
  decltype(&ncclRecv) Recv;

  /// FailedPrecondition, with what to do, if it can't be loaded.
  static absl::StatusOr<NcclLibrary> Load();
};

/// Shared by the communicators of one rank. Thread-safe.
class NcclRuntime {
 public:
  NcclRuntime(const NcclLibrary& library, kernels::CudaDevice* device, double timeout_seconds);
  ~NcclRuntime();

  kernels::CudaDevice& device() const { return *device_; }
  cudaStream_t compute() const { return static_cast<cudaStream_t>(device_->stream()); }
  /// A stream that runs beside the device's; ended with the runtime.
  cudaStream_t NewStream();
  const NcclLibrary& nccl() const { return library_; }

  /// Joins the communicator of `id`; every rank of it at about the same time.
  absl::StatusOr<ncclComm_t> Join(const ncclUniqueId& id, int ranks, int rank,
                                  const std::string& axis);
  void Leave(ncclComm_t comm);
  /// Enqueues `calls`, NCCL calls on comm and stream, and watches them. `op` names them in errors.
  absl::Status Enqueue(ncclComm_t comm, cudaStream_t stream, const std::string& op,
                       const std::function<ncclResult_t()>& calls);
  /// The first fault, or OK.
  absl::Status fault() const;

  /// An event that `stream` reaches after all it was given; returned with GiveEvent.
  cudaEvent_t RecordEvent(cudaStream_t stream);
  void GiveEvent(cudaEvent_t event);

 private:
  struct Watched {
    cudaEvent_t done;
    ncclComm_t comm;
    std::string op;
  };
  struct Queue {
    std::deque<Watched> calls;  // in the order of their stream
    absl::Time since;           // when the front became the next in line
  };
  absl::Status Settle(ncclComm_t comm, ncclResult_t result, absl::Time deadline);
  cudaEvent_t TakeEvent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Watch();
  void LookAt(Queue* queue) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const NcclLibrary library_;
  kernels::CudaDevice* const device_;
  const absl::Duration timeout_;

  mutable absl::Mutex mutex_;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
  std::set<ncclComm_t> comms_ ABSL_GUARDED_BY(mutex_);
  std::vector<cudaEvent_t> free_events_ ABSL_GUARDED_BY(mutex_);
  std::vector<cudaStream_t> streams_ ABSL_GUARDED_BY(mutex_);
  std::map<cudaStream_t, Queue> queues_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

}  // namespace ela::trainer
