// The CUDA device of a rank, and memory of every back end. Builds without a CUDA toolkit have the
// same functions and find no device.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// Cards that this process can use: 0 without a toolkit in the build, a driver or a card.
int NumCudaDevices();
/// Why that number is 0, for messages.
std::string WhyNoCudaDevice();

/// A stream, a cuBLASLt handle and pinned staging memory on one card. Used by one thread at a time;
/// a thread other than the one that opened it first calls Bind.
class CudaDevice {
 public:
  /// Makes card `ordinal` the calling thread's. FailedPrecondition if there is no such card.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(int ordinal);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  int ordinal() const;
  const std::string& name() const;
  /// Where it is in the host, the same for all processes there.
  const std::string& bus_id() const;
  /// Of the card, or of the slice of it that is taken for one: no other has it on any host.
  const std::string& uuid() const;
  void* stream() const;  // cudaStream_t
  size_t total_bytes() const;
  size_t free_bytes() const;
  /// Makes the card the calling thread's.
  void Bind() const;
  /// Waits until the stream is idle.
  void Synchronize() const;

  /// In stream order. `from`, host memory, may change once this returns.
  void CopyIn(void* to, const void* from, size_t bytes);
  /// Waits for what the stream did before; `to` is host memory.
  void CopyOut(void* to, const void* from, size_t bytes);

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  explicit CudaDevice(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// A moment of a device's stream, reached once all that the stream was given before is done. Taking
/// one neither waits nor makes anything wait.
class StreamMoment {
 public:
  StreamMoment() = default;  // none
  explicit StreamMoment(const CudaDevice& device);
  ~StreamMoment();
  StreamMoment(StreamMoment&& other) noexcept;
  StreamMoment& operator=(StreamMoment&& other) noexcept;

  bool Reached() const;
  /// By the device's clock; waits until this moment is reached. `earlier` is of the same stream.
  double SecondsSince(const StreamMoment& earlier) const;

 private:
  void* event_ = nullptr;  // cudaEvent_t
};

/// What a device's stream is given, recorded to be given again: one call in place of the launches
/// of many small kernels, whose launching would take longer than they do.
class CudaGraph {
 public:
  CudaGraph() = default;  // of nothing
  ~CudaGraph();
  CudaGraph(CudaGraph&& other) noexcept;
  CudaGraph& operator=(CudaGraph&& other) noexcept;

  /// Records what `work` gives the stream; nothing of it runs. Every address and size in it stays
  /// as it is now, and `work` may not wait for the stream, copy from or to the host, or take more
  /// scratch memory than there is: it has run before. An error of `work` is handed on.
  static absl::StatusOr<CudaGraph> Record(const CudaDevice& device,
                                          const std::function<absl::Status()>& work);
  bool empty() const { return graph_ == nullptr; }
  /// In the order of the stream that was recorded.
  void Replay() const;

 private:
  void* graph_ = nullptr;   // cudaGraphExec_t
  void* stream_ = nullptr;  // cudaStream_t
};

/// Names what the calling thread does until the end of the scope on a profiler's timeline (NVTX),
/// by the names of the code. Nothing without a profiler or in builds without a CUDA toolkit.
class TraceRange {
 public:
  explicit TraceRange(const char* name);
  ~TraceRange();
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;
};

/// Memory of a back end, aligned to 256 bytes and not initialised; of the calling thread's card for
/// kCuda. Not enough of it ends the process with the numbers: plans are checked before.
class BackendMemory {
 public:
  BackendMemory() = default;
  BackendMemory(size_t bytes, Backend backend);
  ~BackendMemory();
  BackendMemory(BackendMemory&& other) noexcept;
  BackendMemory& operator=(BackendMemory&& other) noexcept;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
  Backend backend_ = Backend::kCpu;
};

/// Between host memory and memory of the context's back end; `dense` tensors. In stream order on
/// CUDA, where CopyOut waits and CopyIn does not; plain copies on the others.
void CopyIn(const Context& ctx, const Tensor& to, const void* from);
void CopyOut(const Context& ctx, void* to, const Tensor& from);
/// Sets every byte to zero.
void Clear(const Context& ctx, const Tensor& x);
/// `host` [n], in host memory, where the context's back end can read it: the tensor itself on the
/// host back ends, a copy in scratch memory on CUDA. The caller holds an ArenaScope over it.
Tensor Uploaded(const Context& ctx, const Tensor& host);

namespace internal {

// What the two builds of the device differ in.
char* AllocateDevice(size_t bytes);
void FreeDevice(char* memory);
void ClearDevice(const Context& ctx, void* memory, size_t bytes);

char* AllocateHost(size_t bytes);
void FreeHost(char* memory);

}  // namespace internal
}  // namespace ela::kernels
