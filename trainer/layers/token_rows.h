// The rows of one micro-batch on this rank: which tokens they are, where they stand, and how their
// documents run across the shards of the sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "data/loader.h"
#include "kernels/ela/ela.h"
#include "kernels/tensor.h"
#include "trainer/parallel/state_exchange.h"

namespace ela::trainer {

/// A row's place in attention: rows meet when their documents are equal, causally by position.
struct RowPlaces {
  std::vector<int32_t> documents;  // [B l] ids of documents, unique within the batch
  std::vector<int32_t> positions;  // [B l] offset in the sequence
};

/// Owns the memory of its tensors. Rows are sequence-major: T = B l.
class TokenRows {
 public:
  TokenRows() = default;
  /// `batch` holds rows [ShardBegin(L, shard, shards), ShardBegin(L, shard + 1, shards)) of each
  /// sequence of L = seq_len tokens.
  TokenRows(data::Batch batch, int64_t seq_len, int shard, int shards);

  int64_t count() const { return batch_.sequences * batch_.length; }  // T
  int64_t sequences() const { return batch_.sequences; }
  int64_t valid_targets() const { return batch_.valid_targets; }
  kernels::Tensor ids() const;        // [T]
  kernels::Tensor targets() const;    // [T]; < 0: none
  kernels::Tensor positions() const;  // [T], for RoPE
  const kernels::Spans& spans() const { return spans_; }
  const FoldPlan& folds() const { return folds_; }
  /// Rows of shard `shard`: B x its length.
  int64_t ShardRows(int shard) const;
  RowPlaces PlacesOf(int shard) const;

 private:
  data::Batch batch_;
  int64_t seq_len_ = 0;
  kernels::Spans spans_;
  FoldPlan folds_;
};

}  // namespace ela::trainer
