// AdamW with ZeRO-1: each rank owns one contiguous shard of each class's flat buffer and keeps
// master, m and v for that alone; m and v for what is trained of it.
//
//   gradients: SUM over the class's group (dense: world; expert: expert_data), reduce-scattered in
//              rank order (ordered_sum.h); the one division by the count of valid targets is
//              already in the loss scale
//   norm:      sum of squares of the owned shards in double, gathered over the world and added in
//              rank order: every element is owned once, so it counts once
//   update:    kernels::AdamWUpdate on the shard, then an all-gather of the parameters
//
// Masters are the float parameters themselves (precision fp32) or separate floats (bf16).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "kernels/context.h"
#include "kernels/device.h"
#include "trainer/optim/parameter_store.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

struct OptimizerConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  // decoupled; only where ParameterInfo.decays
  double grad_clip_norm = 1;  // 0: no clipping
  bool zero1 = true;  // false: every rank keeps and updates everything (same bits; for comparison)
};

/// What all ranks agree on before an update. Bitwise the same on every rank.
struct GradientVerdict {
  bool finite = true;     // every gradient of every rank, and every rank's `locally_finite`
  double norm = 0;        // of the trainable parameters' summed gradient, before clipping
  double clip_scale = 1;  // min(1, grad_clip_norm / norm)
};

/// A copy of one rank's shard for a checkpoint that is written behind the training. Reused: its
/// memory stays.
struct OptimizerSnapshot {
  std::vector<float> memory;
  std::vector<checkpoints::Piece> pieces;  // into memory
};

class Zero1Optimizer {
 public:
  /// `mesh` and `store` must outlive it; the store's dtype is kF32 or kBf16.
  Zero1Optimizer(const Mesh* mesh, ParameterStore* store, const OptimizerConfig& config);

  /// Collective: fills masters (and zeroes the moments), then the parameters of all ranks. An error
  /// on any rank is returned by all of them.
  absl::Status Fill(const kernels::Context& ctx, const ParameterSource& source);

  /// Collective: sums the gradients of store over the ranks (the owned shard stays in its place in
  /// the gradient buffer) and judges them. `locally_finite`: whether this rank's loss is.
  absl::StatusOr<GradientVerdict> ReduceGradients(const kernels::Context& ctx, bool locally_finite);

  /// Collective: one AdamW step with the reduced gradients. `optimizer_step` counts updates from 1
  /// (bias correction). Frozen parameters keep their bits. Not to be called after a verdict that is
  /// not finite.
  absl::Status Update(const kernels::Context& ctx, const GradientVerdict& verdict, double lr,
                      int64_t optimizer_step);

  /// This rank's part of the checkpoint: model/ and, of what is trained, adam_m/ and adam_v/ of the
  /// intervals of its shard, each written by exactly one rank. `Pieces` points at the live shard,
  /// in the store's memory, valid until the next update; `Snapshot` copies to the host.
  std::vector<checkpoints::Piece> Pieces() const;
  void Snapshot(OptimizerSnapshot* snapshot) const;
  /// Collective: masters, m and v from a checkpoint of any mesh: each rank reads its intervals.
  /// Moments that it doesn't hold (of what was frozen then) are zero. Errors as in Fill.
  absl::Status Load(const kernels::Context& ctx, checkpoints::StepReader* reader);

  /// Bytes of masters (bf16 only) and moments on this rank.
  int64_t state_bytes() const;

 private:
  /// Trainable elements [begin, end) of the flat buffer that are treated alike; their moments start
  /// at `moment` of m and v.
  struct Run {
    int64_t begin, end, moment;
    bool decays;
  };
  /// Elements [begin, end) of one tensor, at [flat, flat + end - begin) of the flat buffer; their
  /// moments start at `moment` of m and v, -1 if it is frozen.
  struct Interval {
    const job::ParameterInfo* info;
    int64_t begin, end, flat, moment;
  };
  struct Shard {
    Communicator* group = nullptr;
    int64_t begin = 0, end = 0;  // owned elements of the flat buffer
    // Elements that masters and moments cover: the owned ones, or all (zero1 = false).
    int64_t state_begin = 0, state_end = 0;
    bool trains = false;                 // some element of the class, on whatever rank
    std::vector<Run> norm_runs;          // trainable, owned
    std::vector<Run> update_runs;        // trainable, of the state
    std::vector<Interval> owned, state;  // the tensors' parts in the owned and in the state range
    int64_t moments = 0;                 // trainable elements of the state
    // Floats in the store's memory.
    kernels::BackendMemory master;  // bf16 only; of the state
    kernels::BackendMemory m, v;    // [moments], of the trainable elements in order
  };
  float* Master(ParameterClass cls) const;  // of state_begin
  /// Elements [begin, end) of a parameter, `from` the checkpoint or the initial values, at `to`.
  absl::Status ReadInto(float* to, int64_t numel,
                        const std::function<absl::Status(float*)>& read) const;
  static void PlanShard(const std::vector<ParameterSegment>& segments, Shard* shard);
  absl::Status PublishMasters(const kernels::Context& ctx, ParameterClass cls);
  absl::Status GatherParameters(ParameterClass cls);

  const Mesh* mesh_;
  ParameterStore* store_;
  OptimizerConfig config_;
  mutable std::array<Shard, 2> shards_;
};

/// The manifest's list: model/ of every parameter, adam_m/ and adam_v/ of those that train, f32.
std::vector<v1::TensorRecord> CheckpointTensors(const ParameterStore& store);

/// "model/<name>" of a checkpoint as a source; `reader` must outlive it.
ParameterSource CheckpointSource(checkpoints::StepReader* reader);

}  // namespace ela::trainer
