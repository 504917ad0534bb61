// What every op receives first: where it runs, its scratch memory and its counters.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ela::kernels {

class CudaDevice;  // device.h

enum class Backend : uint8_t {
  kReference,  // double precision, one thread, written to be read
  kCpu,        // float or bf16 storage, OpenMP + BLAS
  kCuda,       // CUDA device memory
};

/// Bump allocator over one block of the back end's memory. Grows only by Reserve, so an op never
/// allocates: it takes what it needs and gives it back in the order of a stack. A measuring arena
/// has no memory and records the peak.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Makes the arena hold at least `bytes`; only while nothing is taken. Device memory is of the
  /// calling thread's card; not enough of it ends the process with the numbers.
  void Reserve(size_t bytes, Backend backend);
  /// `bytes` of memory aligned to 256. An arena that is too small takes an overflow block, released
  /// with the mark (on a device that waits for the device), and remembers the peak.
  void* Take(size_t bytes);
  size_t Mark() const { return used_; }
  void Release(size_t mark);
  size_t peak_bytes() const { return peak_; }

 private:
  struct Overflow;
  char* base_ = nullptr;
  size_t size_ = 0;
  size_t used_ = 0;
  size_t peak_ = 0;
  Backend backend_ = Backend::kCpu;
  Overflow* overflow_ = nullptr;
};

/// Releases on scope exit what was taken since construction.
class ArenaScope {
 public:
  explicit ArenaScope(Arena* arena) : arena_(arena), mark_(arena->Mark()) {}
  ~ArenaScope() { arena_->Release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena* arena_;
  size_t mark_;
};

struct Counters {
  std::atomic<int64_t> slow_path_chunks{0};  // ELA chunks that took the exact path for jumping keys
  // Ops run, by back end: a test that forces one checks these.
  std::atomic<int64_t> reference_ops{0};
  std::atomic<int64_t> cpu_ops{0};
  std::atomic<int64_t> cuda_ops{0};
};

struct Context {
  Backend backend = Backend::kCpu;
  int num_threads = 1;           // of the CPU back end; results do not depend on it
  void* stream = nullptr;        // cudaStream_t of the CUDA back end
  CudaDevice* device = nullptr;  // of the CUDA back end: `stream` is its own or waits for it
  Arena* scratch = nullptr;      // never null when an op runs
  Counters* counters = nullptr;  // never null when an op runs
};

}  // namespace ela::kernels
