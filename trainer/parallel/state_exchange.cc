#include "trainer/parallel/state_exchange.h"

#include <algorithm>
#include <utility>

#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

namespace {

/// The exports of all ranks as the leaves of a balanced tree. States count from the first rank on,
/// gradient states from the last. Sums replace the leaf that they begin with.
class RankTree {
 public:
  RankTree(const kernels::Context& ctx, const Tensor& gathered, int64_t first_row,
           int64_t sequences, const kernels::ElaConfig& config,
           const std::vector<std::vector<uint8_t>>& take, StateKind kind)
      : ctx_(ctx),
        all_(gathered.View({gathered.dim(0) * gathered.dim(1), gathered.dim(2)})),
        rows_(gathered.dim(1)),
        first_row_(first_row),
        sequences_(sequences),
        config_(config),
        take_(take),
        reverse_(kind == StateKind::kGradState) {}

  /// acc = the fold of the taken leaves before (or after) leaf `shard`: of the subtrees beside the
  /// path from the root to it, largest first.
  void FoldBeside(const Tensor& acc, int shard, bool before) {
    kernels::ElaStateIdentity(ctx_, acc, config_);
    int low = 0, high = static_cast<int>(take_.size());
    while (high - low > 1) {
      const int middle = Middle(low, high);
      const bool left = shard < middle;
      if (left != before) {
        const int begin = left ? middle : low, end = left ? high : middle;
        if (AnyTaken(begin, end)) Fold(acc, Sum(begin, end));
      }
      (left ? high : low) = middle;
    }
  }

 private:
  static int Middle(int low, int high) { return (low + high + 1) / 2; }

  bool AnyTaken(int begin, int end) const {
    return std::any_of(take_.begin() + begin, take_.begin() + end, [](const auto& rank) {
      return std::any_of(rank.begin(), rank.end(), [](uint8_t t) { return t != 0; });
    });
  }

  void Fold(const Tensor& acc, const Tensor& later) const {
    kernels::ElaFold(ctx_, acc, later, config_, {}, reverse_);
  }

  Tensor Sum(int low, int high) const {
    if (high - low == 1) return Leaf(low);
    const int middle = Middle(low, high);
    const Tensor left = Sum(low, middle), right = Sum(middle, high);
    Fold(reverse_ ? right : left, reverse_ ? left : right);
    return reverse_ ? right : left;
  }

  Tensor Leaf(int rank) const {
    const int64_t at = rank * rows_ + first_row_;
    for (int64_t b = 0; b < sequences_; ++b) {
      if (take_[static_cast<size_t>(rank)][static_cast<size_t>(b)] != 0) continue;
      kernels::ElaStateIdentity(ctx_, all_.Rows(at + b, at + b + 1), config_);
    }
    return all_.Rows(at, at + sequences_);
  }

  const kernels::Context& ctx_;
  Tensor all_;  // [P edges B, S]
  int64_t rows_, first_row_, sequences_;
  const kernels::ElaConfig& config_;
  const std::vector<std::vector<uint8_t>>& take_;
  bool reverse_;
};

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
  const int64_t b = before.dim(0), last_edge = gathered.dim(1) - b;
  RankTree(ctx, gathered, last_edge, b, config, plan.before, kind)
      .FoldBeside(before, plan.shard, /*before=*/true);
}

void FoldAfter(const kernels::Context& ctx, Tensor after, Tensor gathered,
               const kernels::ElaConfig& config, const FoldPlan& plan, StateKind kind) {
  RankTree(ctx, gathered, /*first_row=*/0, after.dim(0), config, plan.after, kind)
      .FoldBeside(after, plan.shard, /*before=*/false);
}

}  // namespace ela::trainer
