#include "kernels/context.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/device.h"

namespace ela::kernels {
namespace {

constexpr size_t kAlignment = 256;

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

char* Allocate(size_t bytes, Backend backend) {
  return backend == Backend::kCuda ? internal::AllocateDevice(bytes)
                                   : internal::AllocateHost(bytes);
}

void Free(char* memory, Backend backend) {
  if (backend == Backend::kCuda) {
    internal::FreeDevice(memory);
  } else {
    internal::FreeHost(memory);
  }
}

}  // namespace

/// Blocks taken beyond the arena's own, newest first.
struct Arena::Overflow {
  char* memory;
  size_t mark;  // used_ before this block was taken
  Overflow* next;
};

Arena::~Arena() {
  Release(0);
  if (base_ != nullptr) Free(base_, backend_);
}

void Arena::Reserve(size_t bytes, Backend backend) {
  ELA_CHECK(used_ == 0, "%zu bytes are taken", used_);
  const bool same_memory = (backend == Backend::kCuda) == (backend_ == Backend::kCuda);
  bytes = RoundUp(bytes);
  if (bytes <= size_ && same_memory) return;
  if (base_ != nullptr) Free(base_, backend_);
  base_ = nullptr;
  backend_ = backend;
  size_ = 0;
  if (bytes > 0) base_ = Allocate(bytes, backend);
  size_ = bytes;
}

void* Arena::Take(size_t bytes) {
  bytes = RoundUp(std::max<size_t>(bytes, 1));
  const size_t mark = used_;
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  // Overflow blocks count as used, so what is taken after one also overflows: addresses stay those
  // of a stack.
  if (used_ <= size_) return base_ + mark;
  char* memory = Allocate(bytes, backend_);
  overflow_ = new Overflow{memory, mark, overflow_};
  return memory;
}

void Arena::Release(size_t mark) {
  ELA_CHECK(mark <= used_, "mark %zu, used %zu", mark, used_);
  while (overflow_ != nullptr && overflow_->mark >= mark) {
    Overflow* block = overflow_;
    overflow_ = block->next;
    Free(block->memory, backend_);
    delete block;
  }
  used_ = mark;
}

}  // namespace ela::kernels
