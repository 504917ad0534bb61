// What the CUDA back end's files share on the host: checked calls, launches, handles and scratch
// memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "kernels/check.h"
#include "kernels/context.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

#define ELA_CUDA_CHECK(call)                                                       \
  do {                                                                             \
    const cudaError_t error_ = (call);                                             \
    ELA_CHECK(error_ == cudaSuccess, "%s: %s", #call, cudaGetErrorString(error_)); \
  } while (false)

namespace ela::kernels {

namespace cuda {

/// Owns a CUDA handle, created by `Create` and destroyed by `Destroy`.
template <class Handle, cudaError_t (*Destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  ~Owned() {
    if (handle_ != nullptr) Destroy(handle_);
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;

/// A stream that does not wait for the default one; an event without timing.
Stream MakeStream();
Event MakeEvent();

inline cudaStream_t StreamOf(const Context& ctx) { return static_cast<cudaStream_t>(ctx.stream); }

/// Of the device of the context.
int NumMultiprocessors(const Context& ctx);

/// Ends the process, with the kernel's name, if the last launch failed.
inline void CheckLaunch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  ELA_CHECK(error == cudaSuccess, "%s: %s", kernel, cudaGetErrorString(error));
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// n blocks, as many as a grid's x dimension takes.
inline unsigned GridSize(int64_t n) {
  ELA_CHECK(n > 0 && n <= INT32_MAX, "a grid of %lld blocks", static_cast<long long>(n));
  return static_cast<unsigned>(n);
}

/// Scratch memory for n elements.
template <class T>
T* TakeScratch(const Context& ctx, int64_t n) {
  return static_cast<T*>(ctx.scratch->Take(static_cast<size_t>(n) * sizeof(T)));
}

/// Few numbers from the host into scratch memory, through kernel parameters: no host memory is read
/// after the call.
const int64_t* UploadWords(const Context& ctx, const int64_t* words, int64_t count);

}  // namespace cuda

}  // namespace ela::kernels
