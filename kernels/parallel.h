// Threads of the CPU back end. Work is cut into blocks whose bounds depend on the shapes alone,
// each block is computed by one thread in one order, and partial sums are added in block order: no
// result depends on the number of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/context.h"

namespace ela::kernels {

/// body(i) for every i in [0, n), each exactly once, in any order.
template <class Body>
void ParallelFor(const Context& ctx, int64_t n, const Body& body) {
  const int threads = static_cast<int>(std::min<int64_t>(ctx.num_threads, n));
  if (threads <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) body(i);
}

/// body(begin, end) for consecutive blocks of at most `block` of [0, n).
template <class Body>
void ParallelBlocks(const Context& ctx, int64_t n, int64_t block, const Body& body) {
  ParallelFor(ctx, (n + block - 1) / block,
              [&](int64_t i) { body(i * block, std::min(n, (i + 1) * block)); });
}

/// Rows of a block of about 8192 elements: small enough to balance, large enough to be worth a
/// thread.
inline int64_t RowsPerBlock(int64_t row_numel) {
  return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, row_numel));
}

/// One buffer of `count` floats for each thread, from the op's scratch; zero floats cost nothing.
class ThreadBuffers {
 public:
  ThreadBuffers(const Context& ctx, int64_t count) : count_((count + 63) / 64 * 64) {
    if (count_ > 0) {
      const int64_t floats = count_ * std::max(1, ctx.num_threads);
      base_ = static_cast<float*>(ctx.scratch->Take(static_cast<size_t>(floats) * sizeof(float)));
    }
  }
  float* Get() const { return base_ + omp_get_thread_num() * count_; }

 private:
  int64_t count_;
  float* base_ = nullptr;
};

/// Column sums over many rows: each of at most 64 blocks of rows sums into its own partial row,
/// then the partial rows are added in block order.
class RowPartials {
 public:
  RowPartials(const Context& ctx, int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), block_(std::max<int64_t>(16, (rows + 63) / 64)) {
    const int64_t floats = (rows + block_ - 1) / block_ * columns;
    partials_ = static_cast<float*>(ctx.scratch->Take(static_cast<size_t>(floats) * sizeof(float)));
  }

  /// body(begin, end, partial): adds rows [begin, end) into partial [columns], which starts at
  /// zero.
  template <class Body>
  void Run(const Context& ctx, const Body& body) const {
    ParallelBlocks(ctx, rows_, block_, [&](int64_t begin, int64_t end) {
      float* partial = partials_ + begin / block_ * columns_;
      std::memset(partial, 0, static_cast<size_t>(columns_) * sizeof(float));
      body(begin, end, partial);
    });
  }
  /// out [columns] += the sum of the partial rows.
  void AddTo(const Context& ctx, float* out) const {
    const int64_t blocks = (rows_ + block_ - 1) / block_;
    ParallelBlocks(ctx, columns_, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < blocks; ++b) {
        const float* partial = partials_ + b * columns_;
        for (int64_t i = begin; i < end; ++i) out[i] += partial[i];
      }
    });
  }

 private:
  int64_t rows_, columns_, block_;
  float* partials_;
};

}  // namespace ela::kernels
