#include "trainer/parallel/expert_dispatch.h"

#include <cstddef>
#include <limits>
#include <numeric>

#include "kernels/device.h"
#include "kernels/permute/permute.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

namespace {

std::vector<size_t> Bytes(const std::vector<int64_t>& rows, const Tensor& of) {
  std::vector<size_t> bytes;
  for (int64_t n : rows) {
    bytes.push_back(static_cast<size_t>(n * of.row_numel()) * kernels::SizeOf(of.dtype()));
  }
  return bytes;
}

/// [rows, n] as a matrix of the scratch: [T x K] counts as n = 1.
Tensor Scratch(const kernels::Context& ctx, int64_t rows, const Tensor& like) {
  const int64_t n = like.row_numel();
  const size_t bytes = static_cast<size_t>(rows * n) * kernels::SizeOf(like.dtype());
  return Tensor(ctx.scratch->Take(bytes), like.dtype(), {rows, n});
}

Tensor Matrix(const Tensor& t) { return t.View({t.dim(0), t.row_numel()}); }

Tensor Indices(const std::vector<int32_t>& rows) {
  return Tensor::Of(rows.data(), {static_cast<int64_t>(rows.size())});
}

void CheckRows(const Tensor& by_expert, const Tensor& sorted, const DispatchPlan& plan) {
  ELA_CHECK(by_expert.dim(0) == plan.rows() && sorted.dim(0) == plan.sent() &&
                by_expert.row_numel() == sorted.row_numel() && by_expert.dense() &&
                sorted.dense() && by_expert.dtype() == sorted.dtype(),
            "by_expert [%lld, %lld], sorted [%lld, %lld], the plan: %lld and %lld rows",
            static_cast<long long>(by_expert.dim(0)), static_cast<long long>(by_expert.row_numel()),
            static_cast<long long>(sorted.dim(0)), static_cast<long long>(sorted.row_numel()),
            static_cast<long long>(plan.rows()), static_cast<long long>(plan.sent()));
}

}  // namespace

int64_t DispatchPlan::sent() const {
  return std::accumulate(send_rows.begin(), send_rows.end(), int64_t{0});
}

DispatchPlan MakeDispatchPlan(const std::vector<int64_t>& counts, int64_t num_experts, int rank,
                              int ranks) {
  ELA_CHECK(num_experts % ranks == 0 && rank >= 0 && rank < ranks &&
                static_cast<int64_t>(counts.size()) == ranks * num_experts,
            "%lld experts, rank %d of %d, %zu counts", static_cast<long long>(num_experts), rank,
            ranks, counts.size());
  const int64_t own = num_experts / ranks, first = rank * own;
  const auto count = [&](int64_t source, int64_t expert) {
    return counts[static_cast<size_t>(source * num_experts + expert)];
  };

  DispatchPlan plan;
  for (int64_t p = 0; p < ranks; ++p) {
    int64_t send = 0, receive = 0;
    for (int64_t e = 0; e < own; ++e) {
      send += count(rank, p * own + e);
      receive += count(p, first + e);
    }
    plan.send_rows.push_back(send);
    plan.recv_rows.push_back(receive);
  }

  // Arrived: (source, expert). By expert: (expert, source).
  std::vector<int64_t> arrival;  // [P][own] the first arrived row of each run
  int64_t rows = 0;
  for (int64_t p = 0; p < ranks; ++p) {
    for (int64_t e = 0; e < own; ++e) {
      arrival.push_back(rows);
      rows += count(p, first + e);
    }
  }
  ELA_CHECK(rows <= std::numeric_limits<int32_t>::max(), "%lld rows on one rank",
            static_cast<long long>(rows));
  plan.offsets.push_back(0);
  plan.inverse.resize(static_cast<size_t>(rows));
  for (int64_t e = 0; e < own; ++e) {
    for (int64_t p = 0; p < ranks; ++p) {
      const int64_t begin = arrival[static_cast<size_t>(p * own + e)];
      for (int64_t i = begin; i < begin + count(p, first + e); ++i) {
        plan.inverse[static_cast<size_t>(i)] = static_cast<int32_t>(plan.order.size());
        plan.order.push_back(static_cast<int32_t>(i));
      }
    }
    plan.offsets.push_back(static_cast<int64_t>(plan.order.size()));
  }
  return plan;
}

DispatchPlan LocalDispatchPlan(const std::vector<int64_t>& counts) {
  DispatchPlan plan;
  plan.offsets.push_back(0);
  for (const int64_t count : counts) plan.offsets.push_back(plan.offsets.back() + count);
  plan.send_rows = plan.recv_rows = {plan.rows()};
  return plan;
}

absl::Status PlanDispatch(Communicator& expert, const int64_t* counts, int64_t num_experts,
                          DispatchPlan* plan) {
  std::vector<int64_t> all(static_cast<size_t>(expert.size() * num_experts));
  ELA_RETURN_IF_ERROR(
      expert.AllGather(all.data(), counts, static_cast<size_t>(num_experts) * sizeof(int64_t)));
  *plan = MakeDispatchPlan(all, num_experts, expert.rank(), expert.size());
  return absl::OkStatus();
}

absl::Status DispatchRows(const kernels::Context& ctx, Communicator& expert, Tensor by_expert,
                          Tensor sorted, const DispatchPlan& plan) {
  CheckRows(by_expert, sorted, plan);
  const kernels::ArenaScope scope(ctx.scratch);
  const Tensor arrived = Scratch(ctx, plan.rows(), by_expert);
  ELA_RETURN_IF_ERROR(expert.AllToAllV(arrived.data(), Bytes(plan.recv_rows, sorted), sorted.data(),
                                       Bytes(plan.send_rows, sorted)));
  kernels::GatherRows(ctx, Matrix(by_expert), arrived, kernels::Uploaded(ctx, Indices(plan.order)),
                      /*divisor=*/1);
  return absl::OkStatus();
}

absl::Status ReturnRows(const kernels::Context& ctx, Communicator& expert, Tensor sorted,
                        Tensor by_expert, const DispatchPlan& plan) {
  CheckRows(by_expert, sorted, plan);
  const kernels::ArenaScope scope(ctx.scratch);
  const Tensor leaving = Scratch(ctx, plan.rows(), by_expert);
  kernels::GatherRows(ctx, leaving, Matrix(by_expert),
                      kernels::Uploaded(ctx, Indices(plan.inverse)), /*divisor=*/1);
  return expert.AllToAllV(sorted.data(), Bytes(plan.send_rows, sorted), leaving.data(),
                          Bytes(plan.recv_rows, sorted));
}

}  // namespace ela::trainer
