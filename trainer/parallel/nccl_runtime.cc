#include "trainer/parallel/nccl_runtime.h"

#include <dlfcn.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "kernels/shared_library.h"
#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

void CheckCuda(cudaError_t error, const char* what) {
  ELA_CHECK(error == cudaSuccess, "%s: %s", what, cudaGetErrorString(error));
}

}  // namespace

absl::StatusOr<NcclLibrary> NcclLibrary::Load() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_GLOBAL);  // stays for the process
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("several ranks on CUDA devices need NCCL: ", dlerror(),
                     " (install NCCL, or put its folder into LD_LIBRARY_PATH)"));
  }
  NcclLibrary l;
  const bool all =
      kernels::FindFunction(library, "ncclGetUniqueId", &l.GetUniqueId) &&
      kernels::FindFunction(library, "ncclCommInitRankConfig", &l.CommInitRankConfig) &&
      kernels::FindFunction(library, "ncclCommGetAsyncError", &l.CommGetAsyncError) &&
      kernels::FindFunction(library, "ncclCommAbort", &l.CommAbort) &&
      kernels::FindFunction(library, "ncclCommFinalize", &l.CommFinalize) &&
      kernels::FindFunction(library, "ncclCommDestroy", &l.CommDestroy) &&
      kernels::FindFunction(library, "ncclGetErrorString", &l.GetErrorString) &&
      kernels::FindFunction(library, "ncclGroupStart", &l.GroupStart) &&
      kernels::FindFunction(library, "ncclGroupEnd", &l.GroupEnd) &&
      kernels::FindFunction(library, "ncclAllGather", &l.AllGather) &&
      kernels::FindFunction(library, "ncclBroadcast", &l.Broadcast) &&
      kernels::FindFunction(library, "ncclSend", &l.Send) &&
      kernels::FindFunction(library, "ncclRecv", &l.Recv);
  if (!all) return absl::FailedPreconditionError("libnccl.so.2 is older than 2.18");
  return l;
}

NcclRuntime::NcclRuntime(const NcclLibrary& library, kernels::CudaDevice* device,
                         double timeout_seconds)
    : library_(library), device_(device), timeout_(absl::Seconds(timeout_seconds)) {
  watcher_ = std::thread([this] { Watch(); });
}

NcclRuntime::~NcclRuntime() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  watcher_.join();
  absl::MutexLock lock(&mutex_);
  for (const auto& [stream, queue] : queues_) {
    for (const Watched& w : queue.calls) cudaEventDestroy(w.done);
  }
  for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
  for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
}

cudaStream_t NcclRuntime::NewStream() {
  cudaStream_t stream = nullptr;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  absl::MutexLock lock(&mutex_);
  streams_.push_back(stream);
  return stream;
}

absl::Status NcclRuntime::fault() const {
  absl::MutexLock lock(&mutex_);
  return fault_;
}

// NCCL is asked not to block: what is still in progress is asked about until it is not.
absl::Status NcclRuntime::Settle(ncclComm_t comm, ncclResult_t result, absl::Time deadline) {
  while (result == ncclInProgress) {
    ncclResult_t now = ncclInProgress;
    const ncclResult_t asked = library_.CommGetAsyncError(comm, &now);
    result = asked == ncclSuccess ? now : asked;
    if (result != ncclInProgress) break;
    if (absl::Now() > deadline) return absl::UnavailableError("timed out");
    absl::SleepFor(absl::Microseconds(100));
  }
  if (result == ncclSuccess) return absl::OkStatus();
  return absl::UnavailableError(library_.GetErrorString(result));
}

absl::StatusOr<ncclComm_t> NcclRuntime::Join(const ncclUniqueId& id, int ranks, int rank,
                                             const std::string& axis) {
  ELA_RETURN_IF_ERROR(fault());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  const ncclResult_t result = library_.CommInitRankConfig(&comm, ranks, id, rank, &config);
  const absl::Status joined = Settle(comm, result, absl::Now() + timeout_);
  if (!joined.ok()) {
    if (comm != nullptr) library_.CommAbort(comm);
    return absl::Status(joined.code(), absl::StrCat("NCCL: joining the ", ranks, " ranks of ", axis,
                                                    ": ", joined.message()));
  }
  absl::MutexLock lock(&mutex_);
  comms_.insert(comm);
  return comm;
}

void NcclRuntime::Leave(ncclComm_t comm) {
  {
    absl::MutexLock lock(&mutex_);
    if (comms_.erase(comm) == 0) return;  // aborted
  }
  // Also ends calls under way whose peers are gone; what was waited for is done.
  library_.CommAbort(comm);
}

cudaEvent_t NcclRuntime::TakeEvent() {
  cudaEvent_t event;
  if (free_events_.empty()) {
    CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  } else {
    event = free_events_.back();
    free_events_.pop_back();
  }
  return event;
}

cudaEvent_t NcclRuntime::RecordEvent(cudaStream_t stream) {
  absl::MutexLock lock(&mutex_);
  const cudaEvent_t event = TakeEvent();
  CheckCuda(cudaEventRecord(event, stream), "cudaEventRecord");
  return event;
}

void NcclRuntime::GiveEvent(cudaEvent_t event) {
  absl::MutexLock lock(&mutex_);
  free_events_.push_back(event);
}

absl::Status NcclRuntime::Enqueue(ncclComm_t comm, cudaStream_t stream, const std::string& op,
                                  const std::function<ncclResult_t()>& calls) {
  const kernels::TraceRange range(op.c_str());
  absl::MutexLock lock(&mutex_);
  ELA_RETURN_IF_ERROR(fault_);
  const absl::Status status = Settle(comm, calls(), absl::Now() + timeout_);
  if (!status.ok()) {
    Fail(absl::UnavailableError(absl::StrCat("NCCL: ", op, ": ", status.message())));
    return fault_;
  }
  Queue& queue = queues_[stream];
  if (queue.calls.empty()) queue.since = absl::Now();
  queue.calls.push_back({TakeEvent(), comm, op});
  CheckCuda(cudaEventRecord(queue.calls.back().done, stream), "cudaEventRecord");
  return absl::OkStatus();
}

void NcclRuntime::Fail(const absl::Status& status) {
  if (!fault_.ok()) return;
  fault_ = status;
  for (ncclComm_t comm : comms_) library_.CommAbort(comm);
  comms_.clear();
}

void NcclRuntime::LookAt(Queue* queue) {
  while (!queue->calls.empty() && cudaEventQuery(queue->calls.front().done) == cudaSuccess) {
    free_events_.push_back(queue->calls.front().done);
    queue->calls.pop_front();
    queue->since = absl::Now();
  }
  if (queue->calls.empty() || !fault_.ok()) return;
  const Watched& next = queue->calls.front();
  ncclResult_t error = ncclSuccess;
  if (comms_.count(next.comm) > 0) library_.CommGetAsyncError(next.comm, &error);
  if (error != ncclSuccess && error != ncclInProgress) {
    Fail(absl::UnavailableError(
        absl::StrCat("NCCL: ", next.op, ": ", library_.GetErrorString(error))));
  } else if (absl::Now() - queue->since > timeout_) {
    Fail(absl::UnavailableError(absl::StrCat("NCCL: ", next.op, " did not end within ",
                                             absl::FormatDuration(timeout_),
                                             ": a rank is gone, stopped or makes other calls")));
  }
}

void NcclRuntime::Watch() {
  device_->Bind();
  absl::MutexLock lock(&mutex_);
  while (!mutex_.AwaitWithTimeout(absl::Condition(&stopping_), absl::Milliseconds(50))) {
    for (auto& [stream, queue] : queues_) LookAt(&queue);
  }
}

}  // namespace ela::trainer
