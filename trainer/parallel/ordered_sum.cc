#include "trainer/parallel/ordered_sum.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

namespace {

template <class T>
absl::Status AllReduceSumOf(Communicator& group, T* values, int64_t n) {
  const size_t count = static_cast<size_t>(n), ranks = static_cast<size_t>(group.size());
  if (ranks == 1) return absl::OkStatus();
  std::vector<T> all(ranks * count);
  ELA_RETURN_IF_ERROR(group.AllGather(all.data(), values, count * sizeof(T)));
  std::copy_n(all.begin(), count, values);
  for (size_t r = 1; r < ranks; ++r) {
    const T* of_rank = all.data() + r * count;
    for (size_t i = 0; i < count; ++i) values[i] += of_rank[i];
  }
  return absl::OkStatus();
}

Tensor Scratch(const kernels::Context& ctx, kernels::DType dtype, int64_t rows, int64_t columns) {
  const size_t bytes = static_cast<size_t>(rows * columns) * kernels::SizeOf(dtype);
  return Tensor(ctx.scratch->Take(bytes), dtype, {rows, columns});
}

/// sum [1, n] = parts [P, n] added in rank order.
void SumRows(const kernels::Context& ctx, const Tensor& sum, const Tensor& parts) {
  kernels::Add(ctx, sum, parts.Rows(0, 1), parts.Rows(1, 2));
  for (int64_t r = 2; r < parts.dim(0); ++r) kernels::Add(ctx, sum, sum, parts.Rows(r, r + 1));
}

}  // namespace

absl::Status AllReduceSum(Communicator& group, double* values, int64_t n) {
  return AllReduceSumOf(group, values, n);
}
absl::Status AllReduceSum(Communicator& group, int64_t* values, int64_t n) {
  return AllReduceSumOf(group, values, n);
}
absl::Status AllReduceSum(Communicator& group, float* values, int64_t n) {
  return AllReduceSumOf(group, values, n);
}

absl::Status ReduceScatterSum(const kernels::Context& ctx, Communicator& group, Tensor shard,
                              Tensor full, int64_t chunk_numel) {
  const int64_t ranks = group.size(), n = shard.numel();
  ELA_CHECK(full.numel() == ranks * n && full.dense() && shard.dense() &&
                full.dtype() == shard.dtype() && chunk_numel > 0,
            "shard %lld, full %lld, %lld ranks", static_cast<long long>(n),
            static_cast<long long>(full.numel()), static_cast<long long>(ranks));
  if (ranks == 1) {
    if (shard.data() != full.data()) kernels::Copy(ctx, shard, full);
    return absl::OkStatus();
  }
  const Tensor pieces = full.View({ranks, n}), sums = shard.View({n});
  for (int64_t begin = 0; begin < n; begin += chunk_numel) {
    const int64_t end = std::min(begin + chunk_numel, n), columns = end - begin;
    const kernels::ArenaScope scope(ctx.scratch);
    const Tensor send = Scratch(ctx, full.dtype(), ranks, columns);
    const Tensor received = Scratch(ctx, full.dtype(), ranks, columns);
    kernels::Copy(ctx, send, pieces.Columns(begin, end));
    const std::vector<size_t> bytes(static_cast<size_t>(ranks),
                                    static_cast<size_t>(columns) * kernels::SizeOf(full.dtype()));
    ELA_RETURN_IF_ERROR(group.AllToAllV(received.data(), bytes, send.data(), bytes));
    SumRows(ctx, sums.Rows(begin, end).View({1, columns}), received);
  }
  return absl::OkStatus();
}

absl::Status AllGatherFlat(Communicator& group, Tensor full, Tensor shard) {
  ELA_CHECK(full.numel() == group.size() * shard.numel() && full.dense() && shard.dense() &&
                full.dtype() == shard.dtype(),
            "shard %lld, full %lld, %d ranks", static_cast<long long>(shard.numel()),
            static_cast<long long>(full.numel()), group.size());
  if (group.size() == 1 && full.data() == shard.data()) return absl::OkStatus();
  return group.AllGather(full.data(), shard.data(),
                         static_cast<size_t>(shard.numel()) * kernels::SizeOf(shard.dtype()));
}

}  // namespace ela::trainer
