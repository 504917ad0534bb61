// The micro-batches of a step, for this rank: which samples, which rows of them, masked or not.
//
//   global batch of a step = samples [first, first + G); replica i of D takes [first + i G / D,
//   first + (i+1) G / D) in micro-batches of consecutive samples; sequence shard s of P takes its
//   rows of each. So the order of samples is the same on every mesh.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "data/loader.h"
#include "ela/v1/job.pb.h"
#include "trainer/layers/token_rows.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

struct StepBatch {
  std::vector<TokenRows> micro;
  int64_t valid_targets = 0;  // of this rank
};

/// What a masked token is replaced by: the tokenizer's unknown id, which byte fallback leaves
/// unused.
inline constexpr int32_t kMaskId = 0;
inline constexpr double kMaskedShare = 0.15;
/// Of evaluations, during training or of a checkpoint: they mask the same tokens of the same data.
inline constexpr uint64_t kEvalMaskSeed = 1234;

/// The masked_token objective (model.md 3): each token is masked with probability 0.15, a pure
/// function of (seed, step, sample, position); its target is itself, all others have none.
/// `first_sample`: global number of the batch's first sequence; `token_begin`: of its first row.
void MaskTokens(uint64_t seed, int64_t step, int64_t first_sample, int64_t token_begin,
                data::Batch* batch);

class BatchStream {
 public:
  /// `mask_seed`: training.seed, or kEvalMaskSeed.
  BatchStream(const data::Loader* loader, const v1::JobSpec& spec, const MeshSizes& sizes,
              int data_index, int sequence_index, uint64_t mask_seed);

  /// The samples of the global batch that starts at `first_sample`. Local: errors are this rank's.
  absl::Status Fill(int64_t step, int64_t first_sample, StepBatch* out) const;

 private:
  const data::Loader* loader_;
  MeshSizes sizes_;
  int data_index_, sequence_index_;
  int64_t seq_len_, replica_sequences_, micro_sequences_;
  uint64_t mask_seed_;
  bool masked_;
};

}  // namespace ela::trainer
