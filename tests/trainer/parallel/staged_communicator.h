// A communicator of device memory seen as one of host memory: each call copies its buffers to the
// device and back. With it the checks of every back end run over NCCL as they are.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "proto/status_macros.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// Memory of the caller and its copy on the device (null: on the host, for the adapter's own test),
/// which is never null: an empty part stays on the device.
struct StagedBuffer {
  StagedBuffer(kernels::CudaDevice* on, const void* from, size_t size)
      : device(on),
        bytes(size),
        memory(std::max<size_t>(1, size),
               on == nullptr ? kernels::Backend::kCpu : kernels::Backend::kCuda) {
    Copy(memory.data(), from, /*in=*/true);
  }
  void CopyOut(void* to) const { Copy(to, memory.data(), /*in=*/false); }
  void Copy(void* to, const void* from, bool in) const {
    if (bytes == 0) return;
    if (device == nullptr) {
      std::memcpy(to, from, bytes);
    } else if (in) {
      device->CopyIn(to, from, bytes);
    } else {
      device->CopyOut(to, from, bytes);
    }
  }
  kernels::CudaDevice* device;
  size_t bytes;
  kernels::BackendMemory memory;
};

class StagedPending : public Pending {
 public:
  StagedPending(void* to, StagedBuffer recv, StagedBuffer send)
      : to_(to), recv_(std::move(recv)), send_(std::move(send)) {}
  ~StagedPending() override { Wait().IgnoreError(); }
  absl::Status Wait() override {
    if (inner_ == nullptr) return status_;
    status_ = std::exchange(inner_, nullptr)->Wait();
    recv_.CopyOut(to_);
    return status_;
  }
  StagedBuffer& recv() { return recv_; }
  StagedBuffer& send() { return send_; }
  void Follow(std::unique_ptr<Pending> inner) { inner_ = std::move(inner); }

 private:
  void* to_;
  StagedBuffer recv_, send_;
  std::unique_ptr<Pending> inner_;
  absl::Status status_;
};

class StagedCommunicator : public Communicator {
 public:
  /// `device` must outlive it; null: the copies are in host memory.
  StagedCommunicator(std::unique_ptr<Communicator> inner, kernels::CudaDevice* device)
      : inner_(std::move(inner)), device_(device) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& axis() const override { return inner_->axis(); }
  CommStatistics* statistics() const override { return inner_->statistics(); }

  absl::Status AllGather(void* recv, const void* send, size_t bytes) override {
    const StagedBuffer all = Staged(recv, Times(bytes)), own = Staged(send, bytes);
    ELA_RETURN_IF_ERROR(inner_->AllGather(all.memory.data(), PartOf(recv, send, all, own), bytes));
    all.CopyOut(recv);
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send,
                                                          size_t bytes) override {
    auto pending =
        std::make_unique<StagedPending>(recv, Staged(recv, Times(bytes)), Staged(send, bytes));
    const void* from = PartOf(recv, send, pending->recv(), pending->send());
    ELA_ASSIGN_OR_RETURN(std::unique_ptr<Pending> inner,
                         inner_->AllGatherStart(pending->recv().memory.data(), from, bytes));
    pending->Follow(std::move(inner));
    return pending;
  }

  absl::Status AllToAllV(void* recv, const std::vector<size_t>& recv_bytes, const void* send,
                         const std::vector<size_t>& send_bytes) override {
    const StagedBuffer to = Staged(recv, Sum(recv_bytes)), from = Staged(send, Sum(send_bytes));
    ELA_RETURN_IF_ERROR(
        inner_->AllToAllV(to.memory.data(), recv_bytes, from.memory.data(), send_bytes));
    to.CopyOut(recv);
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllToAllVStart(
      void* recv, const std::vector<size_t>& recv_bytes, const void* send,
      const std::vector<size_t>& send_bytes) override {
    auto pending = std::make_unique<StagedPending>(recv, Staged(recv, Sum(recv_bytes)),
                                                   Staged(send, Sum(send_bytes)));
    ELA_ASSIGN_OR_RETURN(std::unique_ptr<Pending> inner,
                         inner_->AllToAllVStart(pending->recv().memory.data(), recv_bytes,
                                                pending->send().memory.data(), send_bytes));
    pending->Follow(std::move(inner));
    return pending;
  }

  absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes, int from,
                                                         const void* send, size_t send_bytes,
                                                         int to) override {
    auto pending =
        std::make_unique<StagedPending>(recv, Staged(recv, recv_bytes), Staged(send, send_bytes));
    ELA_ASSIGN_OR_RETURN(std::unique_ptr<Pending> inner,
                         inner_->SendRecvStart(pending->recv().memory.data(), recv_bytes, from,
                                               pending->send().memory.data(), send_bytes, to));
    pending->Follow(std::move(inner));
    return pending;
  }

  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    const StagedBuffer staged = Staged(data, bytes);
    ELA_RETURN_IF_ERROR(inner_->Broadcast(staged.memory.data(), bytes, root));
    staged.CopyOut(data);
    return absl::OkStatus();
  }

  absl::Status Barrier() override { return inner_->Barrier(); }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, const std::string& axis) override {
    ELA_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> inner, inner_->Split(color, axis));
    return std::make_unique<StagedCommunicator>(std::move(inner), device_);
  }

  void Abort(int exit_code) override { inner_->Abort(exit_code); }

 private:
  StagedBuffer Staged(const void* data, size_t bytes) const { return {device_, data, bytes}; }
  size_t Times(size_t bytes) const { return static_cast<size_t>(size()) * bytes; }
  static size_t Sum(const std::vector<size_t>& parts) {
    size_t sum = 0;
    for (size_t part : parts) sum += part;
    return sum;
  }
  /// Where the device's copy of `send` is: in that of recv if it is this rank's part of it.
  const void* PartOf(const void* recv, const void* send, const StagedBuffer& all,
                     const StagedBuffer& own) const {
    const auto begin = static_cast<const char*>(recv) + static_cast<size_t>(rank()) * own.bytes;
    if (own.bytes == 0 || send != begin) return own.memory.data();
    return all.memory.data() + static_cast<size_t>(rank()) * own.bytes;
  }

  std::unique_ptr<Communicator> inner_;
  kernels::CudaDevice* device_;
};

}  // namespace ela::trainer
