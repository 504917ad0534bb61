#include "trainer/parallel/state_exchange.h"

#include <algorithm>
#include <utility>

#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

namespace {

bool Any(const std::vector<uint8_t>& take) {
  return std::any_of(take.begin(), take.end(), [](uint8_t t) { return t != 0; });
}

/// acc [B, S] (+) rows [first_row, first_row + B) of rank r's export.
void FoldRank(const kernels::Context& ctx, const Tensor& acc, const Tensor& gathered,
              int64_t first_row, const kernels::ElaConfig& config, int rank,
              const std::vector<uint8_t>& take, StateKind kind) {
  if (!Any(take)) return;
  const int64_t rows = gathered.dim(1), b = acc.dim(0);
  const Tensor all = gathered.View({gathered.dim(0) * rows, gathered.dim(2)});
  const int64_t at = rank * rows + first_row;
  kernels::ElaFold(ctx, acc, all.Rows(at, at + b), config, take, kind == StateKind::kGradState);
}

/// Folds the exports of ranks [begin, end): states ascending, gradient states descending.
void FoldRanks(const kernels::Context& ctx, const Tensor& acc, const Tensor& gathered,
               int64_t first_row, const kernels::ElaConfig& config, int begin, int end,
               const std::vector<std::vector<uint8_t>>& take, StateKind kind) {
  kernels::ElaStateIdentity(ctx, acc, config);
  for (int i = begin; i < end; ++i) {
    const int rank = kind == StateKind::kState ? i : end - 1 - (i - begin);
    FoldRank(ctx, acc, gathered, first_row, config, rank, take[static_cast<size_t>(rank)], kind);
  }
}

}  // namespace

absl::Status StateExchange::Start(Communicator& sequence, Tensor gathered, Tensor mine) {
  ELA_CHECK(gathered.numel() == sequence.size() * mine.numel() && gathered.dense() &&
                mine.dense() && gathered.dtype() == mine.dtype(),
            "mine %lld, gathered %lld, %d ranks", static_cast<long long>(mine.numel()),
            static_cast<long long>(gathered.numel()), sequence.size());
  ELA_CHECK(pending_ == nullptr, "an exchange is under way");
  const size_t bytes = static_cast<size_t>(mine.numel()) * kernels::SizeOf(mine.dtype());
  ELA_ASSIGN_OR_RETURN(pending_, sequence.AllGatherStart(gathered.data(), mine.data(), bytes));
  return absl::OkStatus();
}

absl::Status StateExchange::Wait() {
  ELA_CHECK(pending_ != nullptr, "no exchange is under way");
  const std::unique_ptr<Pending> pending = std::move(pending_);
  return pending->Wait();
}

void FoldBefore(const kernels::Context& ctx, Tensor before, Tensor gathered,
                const kernels::ElaConfig& config, const FoldPlan& plan, StateKind kind) {
  const int64_t last_edge = gathered.dim(1) - before.dim(0);
  FoldRanks(ctx, before, gathered, last_edge, config, 0, plan.shard, plan.before, kind);
}

void FoldAfter(const kernels::Context& ctx, Tensor after, Tensor gathered,
               const kernels::ElaConfig& config, const FoldPlan& plan, StateKind kind) {
  FoldRanks(ctx, after, gathered, /*first_row=*/0, config, plan.shard + 1, plan.shards, plan.after,
            kind);
}

}  // namespace ela::trainer
