// Dropless expert parallelism: rows to the ranks that own their experts, and back (parallelism.md,
// section 7).
//
// On every rank of the expert group the slots are sorted by (expert, token) (kernels::SortSlots),
// so what goes to one owner is one contiguous block. Rows arrive as (source rank, local expert) and
// are put in the order (local expert, source rank): the rows of one expert stand in (source rank,
// token) order, which is fixed. Every routed row is computed; an expert, a rank or the whole group
// may have none.
//
// Forward: Plan, Dispatch the rows (and the weights, as rows of one number), the experts, Return.
// Backward reuses the plan: Dispatch the gradient of the combined rows, the experts' backward,
// Return the gradient of the rows. With recompute the plan is kept too: tokens are never routed
// twice.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/context.h"
#include "kernels/tensor.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

struct DispatchPlan {
  std::vector<int64_t> send_rows;  // [P] rows of this rank that each owner gets
  std::vector<int64_t> recv_rows;  // [P] rows that each rank sends here
  std::vector<int64_t>
      offsets;  // [E / P + 1] rows of each own expert, as the grouped products take them
  std::vector<int32_t> order;    // [received] row i by expert is arrived row order[i]
  std::vector<int32_t> inverse;  // [received] arrived row i is row inverse[i] by expert
  int64_t rows() const { return offsets.empty() ? 0 : offsets.back(); }  // R, received
  int64_t sent() const;                                                  // rows of this rank, T x K
};

/// Splits and orders from everyone's counts [P][E], for rank `rank` of P. Pure.
DispatchPlan MakeDispatchPlan(const std::vector<int64_t>& counts, int64_t num_experts, int rank,
                              int ranks);

/// Of one rank alone, whose sorted rows already are the rows by expert: offsets only.
DispatchPlan LocalDispatchPlan(const std::vector<int64_t>& counts);

/// Collective: gathers counts [E] (this rank's slots by expert, host memory) and makes the plan.
absl::Status PlanDispatch(Communicator& expert, const int64_t* counts, int64_t num_experts,
                          DispatchPlan* plan);

/// Collective. by_expert [R, n] = rows from all ranks; sorted [T x K, n] = this rank's rows by
/// (expert, token). Any element type that kernels::GatherRows takes; [T x K] counts as n = 1.
/// Scratch: R x n elements.
absl::Status DispatchRows(const kernels::Context& ctx, Communicator& expert,
                          kernels::Tensor by_expert, kernels::Tensor sorted,
                          const DispatchPlan& plan);

/// Collective, the reverse. sorted [T x K, n] = this rank's rows, back from the owners of their
/// experts.
absl::Status ReturnRows(const kernels::Context& ctx, Communicator& expert, kernels::Tensor sorted,
                        kernels::Tensor by_expert, const DispatchPlan& plan);

}  // namespace ela::trainer
