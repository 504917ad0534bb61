// Forward and backward of one optimizer step over all its micro-batches, up to the gradients in the
// store: what the ranks must then sum and apply.
//
//   loss = (sum over the valid targets of the global batch of -log p) / their count
//        + sum over layers of aux_coef E sum_e f_e P_e
//
// f_e: share of the tokens of the batch that chose e (of the global batch, or under aux_scope:
// micro_batch of the micro-batch of all ranks); P_e: mean probability. The division is in the loss
// scale, so gradients only ever add. With several micro-batches and aux_scope: global_batch a
// forward pass over all of them comes first, for the counts; the first one's, made last, is kept.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "ela/v1/job.pb.h"
#include "trainer/loop/batch_stream.h"
#include "trainer/model/decoder.h"
#include "trainer/optim/parameter_store.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

/// What the ranks tell each other with every step, beside the loss.
struct StepFlags {
  enum : uint32_t {
    kStop = 1,          // stop requested by a signal or the coordinator
    kSuperseded = 2,    // a newer attempt exists
    kShardWritten = 4,  // this rank's part of the checkpoint under way is durable
  };
  uint32_t any = 0;  // flags that some rank raised
  uint32_t all = 0;  // flags that every rank raised
};

struct StepLoss {
  double loss = 0, aux_loss = 0;  // of the global batch; the same bits on every rank
  int64_t valid_targets = 0;
  bool locally_finite = true;
  RoutingStatistics routing;  // of the global batch
  StepFlags flags;
};

class TrainStep {
 public:
  /// `gradients_final` (may be empty): called in the last micro-batch's backward pass, as
  /// Decoder::Backward calls after_layer.
  TrainStep(const v1::JobSpec& spec, Decoder* decoder, ParameterStore* store, const Mesh* mesh,
            AtPart gradients_final = {});

  /// Collective. Zeroes the gradients, then adds those of the batch. `filled`: whether this rank
  /// got its batch; an error on one rank is returned by all. `flags`: this rank's.
  absl::StatusOr<StepLoss> Run(const LayerContext& layer, const StepBatch& batch,
                               const absl::Status& filled, uint32_t flags);

 private:
  absl::StatusOr<int64_t> GlobalValidTargets(const StepBatch& batch, const absl::Status& filled);
  /// Leaves the decoder where Forward of the first micro-batch, routed as `of_first`, has left it.
  absl::Status CountFirst(const LayerContext& layer, const StepBatch& batch,
                          RoutingStatistics* routing, RoutingStatistics* of_first);
  /// d aux / d (sum of probabilities), [N, E], if `counts` of `tokens` tokens chose each expert.
  std::vector<double> BalanceGradient(const std::vector<int64_t>& counts, int64_t tokens) const;
  /// After Forward of a micro-batch, which routed its rows as `local`.
  absl::Status BackwardOf(const LayerContext& layer, const TokenRows& rows,
                          const RoutingStatistics& local, bool counted, bool last, StepLoss* out);
  absl::Status Share(uint32_t flags, StepLoss* out);

  v1::JobSpec spec_;
  Decoder* decoder_;
  ParameterStore* store_;
  const Mesh* mesh_;
  AtPart gradients_final_;
  int64_t layers_, experts_;
  int64_t batch_tokens_;  // of the global batch
  double aux_coef_;       // 0 with one expert: its balance loss is constant
  double scale_ = 0, loss_sum_ = 0, aux_sum_ = 0;  // of the step under way, this rank's part
};

}  // namespace ela::trainer
