// Sums over ranks with one fixed order. Communicators only move bytes; the additions are here, in
// ascending rank order:
//
//   result_i = ((x_i of rank 0 + x_i of rank 1) + x_i of rank 2) + ...
//
// What holds: two runs are bitwise equal; every rank that computes a sum gets the same bits; the
// result depends neither on the back end nor on threads or timing. What does not:
// another number of ranks groups the terms differently, so floats agree to rounding only (integers
// exactly).
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/context.h"
#include "kernels/tensor.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// values[i] = sum over ranks, on every rank. Host memory, few numbers: P x n are gathered.
absl::Status AllReduceSum(Communicator& group, double* values, int64_t n);
absl::Status AllReduceSum(Communicator& group, int64_t* values, int64_t n);
absl::Status AllReduceSum(Communicator& group, float* values, int64_t n);

/// A sum of tensors over the ranks under way, of which each rank gets a piece.
class PendingSum {
 public:
  /// Waits for the pieces of the others and adds: `full` of ReduceScatterSumStart has the sum in
  /// this rank's piece, and the rest of it stays.
  absl::Status Finish(const kernels::Context& ctx);

 private:
  friend absl::StatusOr<PendingSum> ReduceScatterSumStart(Communicator& group, kernels::Tensor full,
                                                          kernels::Tensor received);
  kernels::Tensor sum_, received_;    // [n / P], [P, n / P]
  std::unique_ptr<Pending> pending_;  // null: one rank
};

/// Starts the sum over the ranks of full [n], n a multiple of the group's size P, of which rank r
/// gets elements [r n / P, (r+1) n / P). An all-to-all of the pieces, then a local sum: the traffic
/// of a reduce-scatter. `full` and received [n], where they arrive, must stay as they are until
/// Finish. kF32 or kF64.
absl::StatusOr<PendingSum> ReduceScatterSumStart(Communicator& group, kernels::Tensor full,
                                                 kernels::Tensor received);

}  // namespace ela::trainer
