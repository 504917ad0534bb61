#include "kernels/device.h"

#include <cstring>
#include <new>
#include <utility>

#include "kernels/check.h"

namespace ela::kernels {
namespace internal {

constexpr std::align_val_t kAlignment{256};

char* AllocateHost(size_t bytes) { return static_cast<char*>(::operator new(bytes, kAlignment)); }
void FreeHost(char* memory) { ::operator delete(memory, kAlignment); }

}  // namespace internal

BackendMemory::BackendMemory(size_t bytes, Backend backend) : bytes_(bytes), backend_(backend) {
  if (bytes == 0) return;
  const bool device = backend == Backend::kCuda;
  data_ = device ? internal::AllocateDevice(bytes) : internal::AllocateHost(bytes);
}

BackendMemory::~BackendMemory() {
  if (data_ == nullptr) return;
  if (backend_ == Backend::kCuda) {
    internal::FreeDevice(data_);
  } else {
    internal::FreeHost(data_);
  }
}

BackendMemory::BackendMemory(BackendMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      backend_(other.backend_) {}

BackendMemory& BackendMemory::operator=(BackendMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(backend_, other.backend_);
  return *this;
}

namespace {

size_t BytesOf(const Tensor& x) {
  ELA_CHECK(x.dense(), "copies to and from the host are of dense tensors");
  return static_cast<size_t>(x.numel()) * SizeOf(x.dtype());
}

}  // namespace

void CopyIn(const Context& ctx, const Tensor& to, const void* from) {
  const size_t bytes = BytesOf(to);
  if (bytes == 0) return;
  if (ctx.backend == Backend::kCuda) return ctx.device->CopyIn(to.data(), from, bytes);
  std::memcpy(to.data(), from, bytes);
}

void CopyOut(const Context& ctx, void* to, const Tensor& from) {
  const size_t bytes = BytesOf(from);
  if (bytes == 0) return;
  if (ctx.backend == Backend::kCuda) return ctx.device->CopyOut(to, from.data(), bytes);
  std::memcpy(to, from.data(), bytes);
}

Tensor Uploaded(const Context& ctx, const Tensor& host) {
  if (ctx.backend != Backend::kCuda) return host;
  ELA_CHECK(host.rank() == 1, "rank %d", host.rank());
  const Tensor copy(ctx.scratch->Take(BytesOf(host)), host.dtype(), {host.numel()});
  CopyIn(ctx, copy, host.data());
  return copy;
}

void Clear(const Context& ctx, const Tensor& x) {
  const size_t bytes = BytesOf(x);
  if (bytes == 0) return;
  if (ctx.backend == Backend::kCuda) return internal::ClearDevice(ctx, x.data(), bytes);
  std::memset(x.data(), 0, bytes);
}

}  // namespace ela::kernels
