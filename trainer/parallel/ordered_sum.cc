#include "trainer/parallel/ordered_sum.h"

#include <algorithm>
#include <cstddef>
#include <utility>
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

absl::StatusOr<PendingSum> ReduceScatterSumStart(Communicator& group, Tensor full,
                                                 Tensor received) {
  const int64_t ranks = group.size(), n = full.numel() / ranks;
  ELA_CHECK(full.numel() == ranks * n && received.numel() == ranks * n && full.dense() &&
                received.dense() && full.dtype() == received.dtype(),
            "full %lld, received %lld, %lld ranks", static_cast<long long>(full.numel()),
            static_cast<long long>(received.numel()), static_cast<long long>(ranks));
  PendingSum sum;
  if (ranks == 1) return sum;
  sum.sum_ = full.View({ranks, n}).Rows(group.rank(), group.rank() + 1);
  sum.received_ = received.View({ranks, n});
  const std::vector<size_t> bytes(static_cast<size_t>(ranks),
                                  static_cast<size_t>(n) * kernels::SizeOf(full.dtype()));
  ELA_ASSIGN_OR_RETURN(sum.pending_,
                       group.AllToAllVStart(received.data(), bytes, full.data(), bytes));
  return sum;
}

absl::Status PendingSum::Finish(const kernels::Context& ctx) {
  if (pending_ == nullptr) return absl::OkStatus();
  ELA_RETURN_IF_ERROR(std::exchange(pending_, nullptr)->Wait());
  SumRows(ctx, sum_, received_);
  return absl::OkStatus();
}

}  // namespace ela::trainer
