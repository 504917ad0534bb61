// How attention states travel between the shards of a sequence (model.md 1.3, parallelism.md 1, 2
// and 5).
//
// Forward, causal: every rank exports the state of its *last* span of each sequence; `before` of a
// rank is the fold of what the ranks before it export, as far as they share the document of its
// first row. Backward, causal: every rank exports the gradient state of its *first* span; `after`
// is the fold (kernels::ElaFold with reverse) of the ranks after it that share the document of its
// last row. Bidirectional: both edges are exported in one payload, and both folds are wanted,
// forward and backward.
//
// Folds follow a balanced tree over the ranks, the continuation of the tree over chunks inside a
// rank: with 2^n ranks of equally many whole chunks every row sees the bits that it sees on one
// rank (kernels::ElaFold).
//
// The collective is always issued, whatever the documents are: nothing depends on data, so nothing
// can deadlock. Folding looks at the plan. A rank without rows exports the identity and is passed
// over.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/context.h"
#include "kernels/ela/ela.h"
#include "kernels/tensor.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// Global offsets in [0, L) at which the documents of each sequence start, ascending, the first 0
/// (data::Batch). Without a document mask: {0} for every sequence.
using DocumentStarts = std::vector<std::vector<int64_t>>;

/// Rows [begin, end) of every sequence as spans of attention: what the kernels need. Rows are
/// sequence-major [B, end - begin].
kernels::Spans LocalSpans(const DocumentStarts& starts, int64_t begin, int64_t end);

/// Which ranks' exports this rank folds. Pure: the same on all ranks that are given the same
/// documents.
struct FoldPlan {
  int shards = 1;         // P
  int shard = 0;          // this rank
  int64_t sequences = 0;  // B
  /// [P][B]; before[r][b] != 0: rank r < shard holds rows of the document that this shard's first
  /// row of b continues.
  std::vector<std::vector<uint8_t>> before;
  /// [P][B]; after[r][b] != 0: rank r > shard holds rows of the document that goes on after this
  /// shard's last row of b.
  std::vector<std::vector<uint8_t>> after;
};
FoldPlan PlanFolds(const DocumentStarts& starts, int64_t length, int shard, int shards);

/// Sums over keys (forward: from the first rank on) or gradient states (backward: from the last).
enum class StateKind : uint8_t { kState, kGradState };

/// One exchange under way. `mine` [edges x B, S] is sent: one edge in causal passes (forward the
/// last span's state, backward the first span's), or both, all first spans then all last spans, in
/// bidirectional ones. `gathered` [P, edges x B, S] receives. Both stay in place until Wait. Start
/// it as soon as the local state exists, do the local work, then Wait.
class StateExchange {
 public:
  absl::Status Start(Communicator& sequence, kernels::Tensor gathered, kernels::Tensor mine);
  absl::Status Wait();

 private:
  std::unique_ptr<Pending> pending_;
};

/// before [B, S] = fold of the ranks before this one (their last edge), from the identity. Uses up
/// that edge of `gathered`: sums of subtrees are left in it.
void FoldBefore(const kernels::Context& ctx, kernels::Tensor before, kernels::Tensor gathered,
                const kernels::ElaConfig& config, const FoldPlan& plan, StateKind kind);
/// after [B, S] = fold of the ranks after this one (their first edge), from the identity. Uses up
/// that edge of `gathered`.
void FoldAfter(const kernels::Context& ctx, kernels::Tensor after, kernels::Tensor gathered,
               const kernels::ElaConfig& config, const FoldPlan& plan, StateKind kind);

}  // namespace ela::trainer
