#include "trainer/parallel/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "proto/status_macros.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/comm_timer.h"
#include "trainer/parallel/nccl_runtime.h"

namespace ela::trainer {
namespace {

char* At(void* data, size_t offset) { return static_cast<char*>(data) + offset; }
const char* At(const void* data, size_t offset) { return static_cast<const char*>(data) + offset; }

/// Memory that the device owns. Null (of an empty part) is no memory at all.
bool OnDevice(const void* p) {
  cudaPointerAttributes attributes;
  if (p == nullptr || cudaPointerGetAttributes(&attributes, p) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice;
}

absl::Status CopyOwn(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (bytes == 0 || to == from) return absl::OkStatus();
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
  return error == cudaSuccess ? absl::OkStatus() : absl::InternalError(cudaGetErrorString(error));
}

/// Of a call on the stream beside: the device's stream waits for its event.
class NcclPending : public Pending {
 public:
  NcclPending(std::shared_ptr<NcclRuntime> runtime, cudaEvent_t done)
      : runtime_(std::move(runtime)), done_(done) {}
  ~NcclPending() override { Wait().IgnoreError(); }
  absl::Status Wait() override {
    if (done_ == nullptr) return runtime_->fault();
    const cudaError_t error = cudaStreamWaitEvent(runtime_->compute(), done_, 0);
    ELA_CHECK(error == cudaSuccess, "%s", cudaGetErrorString(error));
    runtime_->GiveEvent(std::exchange(done_, nullptr));
    return runtime_->fault();
  }

 private:
  std::shared_ptr<NcclRuntime> runtime_;
  cudaEvent_t done_;
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<NcclRuntime> runtime, std::unique_ptr<Communicator> host)
      : runtime_(std::move(runtime)),
        host_(std::move(host)),
        compute_{nullptr, runtime_->compute()},
        beside_{nullptr, runtime_->NewStream()} {}
  ~NcclCommunicator() override {
    for (Lane* lane : {&compute_, &beside_}) {
      if (lane->comm != nullptr) runtime_->Leave(lane->comm);
    }
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::string& axis() const override { return host_->axis(); }
  CommStatistics* statistics() const override { return host_->statistics(); }

  absl::Status AllGather(void* recv, const void* send, size_t bytes) override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    if (!OnDevice(recv)) return host_->AllGather(recv, send, bytes);
    const CommTimer timer(statistics(), kAllGather, axis(), 1, OthersTimes(bytes));
    return Gather(&compute_, recv, send, bytes);
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send,
                                                          size_t bytes) override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    if (!OnDevice(recv)) return host_->AllGatherStart(recv, send, bytes);
    const CommTimer timer(statistics(), kAllGather, axis(), 1, OthersTimes(bytes));
    BesideFollowsCompute();
    ELA_RETURN_IF_ERROR(Gather(&beside_, recv, send, bytes));
    return NewPending();
  }

  absl::Status AllToAllV(void* recv, const std::vector<size_t>& recv_bytes, const void* send,
                         const std::vector<size_t>& send_bytes) override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    if (!OnDevice(recv) && !OnDevice(send)) {
      return host_->AllToAllV(recv, recv_bytes, send, send_bytes);
    }
    return AllToAll(&compute_, recv, recv_bytes, send, send_bytes);
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllToAllVStart(
      void* recv, const std::vector<size_t>& recv_bytes, const void* send,
      const std::vector<size_t>& send_bytes) override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    if (!OnDevice(recv) && !OnDevice(send)) {
      return host_->AllToAllVStart(recv, recv_bytes, send, send_bytes);
    }
    BesideFollowsCompute();
    ELA_RETURN_IF_ERROR(AllToAll(&beside_, recv, recv_bytes, send, send_bytes));
    return NewPending();
  }

  absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes, int from,
                                                         const void* send, size_t send_bytes,
                                                         int to) override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    if (!OnDevice(recv) && !OnDevice(send)) {
      return host_->SendRecvStart(recv, recv_bytes, from, send, send_bytes, to);
    }
    const CommTimer timer(statistics(), kSendRecv, axis(), 1, from == rank() ? 0 : recv_bytes);
    BesideFollowsCompute();
    if (from == rank() && to == rank()) {
      ELA_RETURN_IF_ERROR(CopyOwn(recv, send, recv_bytes, beside_.stream));
      return NewPending();
    }
    std::vector<size_t> incoming(static_cast<size_t>(size())), outgoing(incoming);
    incoming[static_cast<size_t>(from)] = recv_bytes;
    outgoing[static_cast<size_t>(to)] = send_bytes;
    ELA_RETURN_IF_ERROR(Exchange(&beside_, kSendRecv, recv, incoming, send, outgoing));
    return NewPending();
  }

  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    if (!OnDevice(data)) return host_->Broadcast(data, bytes, root);
    const CommTimer timer(statistics(), kBroadcast, axis(), 1, rank() == root ? 0 : bytes);
    if (size() == 1 || bytes == 0) return absl::OkStatus();
    ELA_RETURN_IF_ERROR(Open(&compute_));
    return runtime_->Enqueue(compute_.comm, runtime_->compute(), Name(kBroadcast), [&] {
      return runtime_->nccl().Broadcast(data, data, bytes, ncclInt8, root, compute_.comm,
                                        runtime_->compute());
    });
  }

  absl::Status Barrier() override {
    ELA_RETURN_IF_ERROR(runtime_->fault());
    return host_->Barrier();
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, const std::string& axis) override {
    ELA_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> host, host_->Split(color, axis));
    return std::make_unique<NcclCommunicator>(runtime_, std::move(host));
  }

  void Abort(int exit_code) override { host_->Abort(exit_code); }

 private:
  /// One NCCL communicator and the stream of its calls, which run one after the other.
  struct Lane {
    ncclComm_t comm;
    cudaStream_t stream;
  };

  size_t OthersTimes(size_t bytes) const { return (static_cast<size_t>(size()) - 1) * bytes; }
  std::string Name(const char* op) const { return absl::StrCat(op, " of ", axis()); }

  /// Collective: the first call on a lane opens it.
  absl::Status Open(Lane* lane) {
    if (lane->comm != nullptr) return absl::OkStatus();
    ncclUniqueId id = {};
    absl::Status made;
    if (rank() == 0 && runtime_->nccl().GetUniqueId(&id) != ncclSuccess) {
      made = absl::UnavailableError("NCCL makes no id: NCCL_DEBUG=WARN says why");
    }
    ELA_RETURN_IF_ERROR(AgreeOk(*host_, made));
    ELA_RETURN_IF_ERROR(host_->Broadcast(&id, sizeof id, 0));
    ELA_ASSIGN_OR_RETURN(lane->comm, runtime_->Join(id, size(), rank(), axis()));
    return absl::OkStatus();
  }

  absl::Status Gather(Lane* lane, void* recv, const void* send, size_t bytes) {
    if (size() == 1 || bytes == 0) return CopyOwn(recv, send, bytes, lane->stream);
    ELA_RETURN_IF_ERROR(Open(lane));
    return runtime_->Enqueue(lane->comm, lane->stream, Name(kAllGather), [&] {
      return runtime_->nccl().AllGather(send, recv, bytes, ncclInt8, lane->comm, lane->stream);
    });
  }

  absl::Status AllToAll(Lane* lane, void* recv, const std::vector<size_t>& recv_bytes,
                        const void* send, const std::vector<size_t>& send_bytes) {
    const size_t ranks = static_cast<size_t>(size()), me = static_cast<size_t>(rank());
    ELA_CHECK(recv_bytes.size() == ranks && send_bytes.size() == ranks &&
                  recv_bytes[me] == send_bytes[me],
              "%zu ranks", ranks);
    size_t received = 0, sent = 0, own_from = 0, own_to = 0;
    for (size_t p = 0; p < ranks; ++p) {
      if (p == me) own_to = received, own_from = sent;
      received += recv_bytes[p];
      sent += send_bytes[p];
    }
    const CommTimer timer(statistics(), kAllToAll, axis(), 1, received - recv_bytes[me]);
    ELA_RETURN_IF_ERROR(
        CopyOwn(At(recv, own_to), At(send, own_from), recv_bytes[me], lane->stream));
    return Exchange(lane, kAllToAll, recv, recv_bytes, send, send_bytes);
  }

  /// Everything but this rank's part for itself: parts are contiguous, in rank order.
  absl::Status Exchange(Lane* lane, const char* op, void* recv,
                        const std::vector<size_t>& recv_bytes, const void* send,
                        const std::vector<size_t>& send_bytes) {
    if (size() == 1) return absl::OkStatus();
    ELA_RETURN_IF_ERROR(Open(lane));
    const NcclLibrary& nccl = runtime_->nccl();
    return runtime_->Enqueue(lane->comm, lane->stream, Name(op), [&] {
      ncclResult_t result = nccl.GroupStart();
      const auto keep = [&](ncclResult_t next) {
        if (result == ncclSuccess || result == ncclInProgress) result = next;
      };
      size_t received = 0, sent = 0;
      for (int p = 0; p < size(); ++p) {
        const size_t in = recv_bytes[static_cast<size_t>(p)];
        const size_t out = send_bytes[static_cast<size_t>(p)];
        if (p != rank() && in > 0) {
          keep(nccl.Recv(At(recv, received), in, ncclInt8, p, lane->comm, lane->stream));
        }
        if (p != rank() && out > 0) {
          keep(nccl.Send(At(send, sent), out, ncclInt8, p, lane->comm, lane->stream));
        }
        received += in;
        sent += out;
      }
      keep(nccl.GroupEnd());
      return result;
    });
  }

  void BesideFollowsCompute() {
    const cudaEvent_t before = runtime_->RecordEvent(runtime_->compute());
    const cudaError_t error = cudaStreamWaitEvent(beside_.stream, before, 0);
    ELA_CHECK(error == cudaSuccess, "%s", cudaGetErrorString(error));
    runtime_->GiveEvent(before);
  }

  std::unique_ptr<Pending> NewPending() {
    return std::make_unique<NcclPending>(runtime_, runtime_->RecordEvent(beside_.stream));
  }

  std::shared_ptr<NcclRuntime> runtime_;
  std::unique_ptr<Communicator> host_;
  Lane compute_, beside_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclWorld(std::unique_ptr<Communicator> host,
                                                            kernels::CudaDevice* device,
                                                            double timeout_seconds) {
  ELA_CHECK(device != nullptr, "NCCL without a device");
  auto library = NcclLibrary::Load();
  ELA_RETURN_IF_ERROR(AgreeOk(*host, library.status()));
  auto runtime = std::make_shared<NcclRuntime>(*library, device, timeout_seconds);
  return std::make_unique<NcclCommunicator>(std::move(runtime), std::move(host));
}

}  // namespace ela::trainer
