#include "kernels/context.h"

#include <algorithm>
#include <new>

#include "kernels/check.h"

namespace ela::kernels {
namespace {

constexpr size_t kAlignment = 256;

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

char* AllocateHost(size_t bytes) {
  return static_cast<char*>(::operator new (bytes, std::align_val_t{kAlignment}));
}

void FreeHost(char* memory) { ::operator delete (memory, std::align_val_t{kAlignment}); }

}  // namespace

/// Blocks taken beyond the arena's own, newest first.
struct Arena::Overflow {
  char* memory;
  size_t mark;  // used_ before this block was taken
  Overflow* next;
};

Arena::~Arena() {
  Release(0);
  if (base_ != nullptr) FreeHost(base_);
}

void Arena::Reserve(size_t bytes, Backend backend) {
  ELA_CHECK(used_ == 0, "%zu bytes are taken", used_);
  ELA_CHECK(backend != Backend::kCuda, "this build has no CUDA back end");
  backend_ = backend;
  bytes = RoundUp(bytes);
  if (bytes <= size_) return;
  if (base_ != nullptr) FreeHost(base_);
  base_ = AllocateHost(bytes);
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
  char* memory = AllocateHost(bytes);
  overflow_ = new Overflow{memory, mark, overflow_};
  return memory;
}

void Arena::Release(size_t mark) {
  ELA_CHECK(mark <= used_, "mark %zu, used %zu", mark, used_);
  while (overflow_ != nullptr && overflow_->mark >= mark) {
    Overflow* block = overflow_;
    overflow_ = block->next;
    FreeHost(block->memory);
    delete block;
  }
  used_ = mark;
}

}  // namespace ela::kernels
