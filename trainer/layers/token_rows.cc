#include "trainer/layers/token_rows.h"

#include <algorithm>
#include <utility>

#include "trainer/parallel/mesh.h"

namespace ela::trainer {

using kernels::Tensor;

TokenRows::TokenRows(data::Batch batch, int64_t seq_len, int shard, int shards)
    : batch_(std::move(batch)),
      seq_len_(seq_len),
      spans_(LocalSpans(batch_.document_starts, ShardBegin(seq_len, shard, shards),
                        ShardBegin(seq_len, shard + 1, shards))),
      folds_(PlanFolds(batch_.document_starts, seq_len, shard, shards)) {
  ELA_CHECK(ShardBegin(seq_len, shard + 1, shards) - ShardBegin(seq_len, shard, shards) ==
            batch_.length);
}

Tensor TokenRows::ids() const { return Tensor::Of(batch_.ids.data(), {count()}); }
Tensor TokenRows::targets() const { return Tensor::Of(batch_.targets.data(), {count()}); }
Tensor TokenRows::positions() const { return Tensor::Of(batch_.positions.data(), {count()}); }

int64_t TokenRows::ShardRows(int shard) const {
  return sequences() * (ShardBegin(seq_len_, shard + 1, folds_.shards) -
                        ShardBegin(seq_len_, shard, folds_.shards));
}

RowPlaces TokenRows::PlacesOf(int shard) const {
  const int64_t begin = ShardBegin(seq_len_, shard, folds_.shards);
  const int64_t end = ShardBegin(seq_len_, shard + 1, folds_.shards);
  RowPlaces places;
  int32_t first_document = 0;
  for (const std::vector<int64_t>& starts : batch_.document_starts) {
    for (int64_t i = begin; i < end; ++i) {
      const auto after = std::upper_bound(starts.begin(), starts.end(), i);
      places.documents.push_back(first_document + static_cast<int32_t>(after - starts.begin()));
      places.positions.push_back(static_cast<int32_t>(i));
    }
    first_document += static_cast<int32_t>(starts.size());
  }
  return places;
}

}  // namespace ela::trainer
