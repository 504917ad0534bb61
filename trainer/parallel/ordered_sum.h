// Sums over ranks with one fixed order. Communicators only move bytes; the additions are here, in
// ascending rank order:
//
//   result_i = ((x_i of rank 0 + x_i of rank 1) + x_i of rank 2) + ...
//
// What holds: two runs are bitwise equal; every rank that computes a sum gets the same bits; the
// result depends neither on the back end nor on chunk sizes, threads or timing. What does not:
// another number of ranks groups the terms differently, so floats agree to rounding only (integers
// exactly).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/context.h"
#include "kernels/tensor.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// values[i] = sum over ranks, on every rank. Host memory, few numbers: P x n are gathered.
absl::Status AllReduceSum(Communicator& group, double* values, int64_t n);
absl::Status AllReduceSum(Communicator& group, int64_t* values, int64_t n);
absl::Status AllReduceSum(Communicator& group, float* values, int64_t n);

/// shard [n / P] = elements [r n / P, (r+1) n / P) of the sum over ranks of full [n], n a multiple
/// of the group's size P. `shard` may be that part of `full`; the rest of `full` stays. An
/// all-to-all of pieces, then a local sum: the traffic of a reduce-scatter. Takes at most 2 P x
/// chunk_numel elements of scratch from ctx. kF32 or kF64.
absl::Status ReduceScatterSum(const kernels::Context& ctx, Communicator& group,
                              kernels::Tensor shard, kernels::Tensor full,
                              int64_t chunk_numel = int64_t{1} << 18);

/// full [n] = the shards [n / P] of all ranks, in rank order; `shard` may be this rank's part of
/// `full`.
absl::Status AllGatherFlat(Communicator& group, kernels::Tensor full, kernels::Tensor shard);

}  // namespace ela::trainer
