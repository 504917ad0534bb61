// AdamW with ZeRO-1: each rank owns a piece of each bucket of the flat buffers and keeps master, m
// and v for that alone; m and v for what is trained of it.
//
//   gradients: SUM over the class's group (dense: world; expert: expert_data), reduce-scattered in
//              rank order (ordered_sum.h), bucket by bucket beside the rest of the backward pass;
//              the one division by the count of valid targets is already in the loss scale
//   norm:      sum of squares of the owned shards in double, gathered over the world and added in
//              rank order: every element is owned once, so it counts once
//   update:    kernels::AdamWUpdate on the owned pieces, then all-gathers of the parameters, which
//              run on beside the next forward pass
//
// When something is sent changes no bit: every element has one sum, of the same terms in one order.
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
#include "trainer/parallel/ordered_sum.h"

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

/// A copy of what one rank owns for a checkpoint that is written behind the training. Reused: its
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

  /// Collective: starts the sums of the gradients of `part` (job::ParameterInfo::part) and of those
  /// above it, which must be final. What the call before the last started is finished first: its
  /// memory is used again. Optional: what has not been started ReduceGradients starts.
  absl::Status StartReducing(const kernels::Context& ctx, int64_t part);

  /// Collective: sums the gradients of store over the ranks (the owned pieces stay in their places
  /// in the gradient buffer) and judges them. `locally_finite`: whether this rank's loss is.
  absl::StatusOr<GradientVerdict> ReduceGradients(const kernels::Context& ctx, bool locally_finite);

  /// Collective: one AdamW step with the reduced gradients. `optimizer_step` counts updates from 1
  /// (bias correction). Frozen parameters keep their bits. Not to be called after a verdict that is
  /// not finite. The store has the parameters that others own after AwaitParameters.
  absl::Status Update(const kernels::Context& ctx, const GradientVerdict& verdict, double lr,
                      int64_t optimizer_step);
  /// Waits for the parameters of parts up to `part`, by default of all.
  absl::Status AwaitParameters(int64_t part = INT64_MAX);

  /// This rank's part of the checkpoint: model/ and, of what is trained, adam_m/ and adam_v/ of the
  /// intervals that it owns, each written by exactly one rank. `Pieces` points at the live state,
  /// in the store's memory, valid until the next update; `Snapshot` copies to the host.
  std::vector<checkpoints::Piece> Pieces() const;
  void Snapshot(OptimizerSnapshot* snapshot) const;
  /// Collective: masters, m and v from a checkpoint of any mesh: each rank reads its intervals.
  /// Moments that it doesn't hold (of what was frozen then) are zero. Errors as in Fill.
  absl::Status Load(const kernels::Context& ctx, checkpoints::StepReader* reader);

  /// Bytes of masters (bf16 only) and moments on this rank.
  int64_t state_bytes() const;
  /// Bytes where gradients of other ranks arrive.
  int64_t received_bytes() const;

 private:
  /// Elements [begin, end) of one tensor, at `flat` of the flat buffer and `master` of the state.
  /// Their moments start at `moment` of m and v, -1 if it is frozen.
  struct Interval {
    const job::ParameterInfo* info;
    int64_t begin, end, flat, master, moment;
  };
  /// Trainable elements [begin, end) of the flat buffer that are treated alike, placed likewise.
  struct Run {
    int64_t begin, end, master, moment;
    bool decays;
  };
  struct Bucket {
    ParameterClass cls;
    Communicator* group;
    int64_t part;
    int64_t begin, end;                 // of the flat buffer
    int64_t own_begin, own_end;         // this rank's piece
    int64_t state_begin, state_end;     // of masters and moments: the piece, or all (zero1 = false)
    int64_t master;                     // where the state's begin is in the class's masters
    bool trains = false;                // some element of it, of whatever rank's piece
    std::vector<Run> norm_runs = {};    // trainable, owned
    std::vector<Run> update_runs = {};  // trainable, of the state
    std::vector<Interval> owned = {}, state = {};
    std::unique_ptr<Pending> gather = nullptr;  // of the parameters, under way
    int64_t numel() const { return end - begin; }
  };
  /// A class's state on this rank: floats in the store's memory.
  struct State {
    int64_t masters = 0, moments = 0;  // elements, and trainable ones
    kernels::BackendMemory master;     // bf16 only
    kernels::BackendMemory m, v;       // [moments]
  };

  static float* FloatsOf(const kernels::BackendMemory& memory);
  static kernels::Tensor FloatsAt(const kernels::BackendMemory& memory, int64_t begin, int64_t end);
  /// Sums under way and where the gradients of the other ranks arrive.
  struct Arrivals {
    kernels::BackendMemory memory;
    std::vector<PendingSum> sums;
  };

  void PlanBucket(const std::vector<ParameterSegment>& segments, Bucket* bucket);
  void ReserveReceived();
  State& state(ParameterClass cls) { return states_[static_cast<size_t>(cls)]; }
  const State& state(ParameterClass cls) const { return states_[static_cast<size_t>(cls)]; }
  float* Master(ParameterClass cls, int64_t flat, int64_t master) const;
  /// Elements [begin, end) of a parameter, `from` the checkpoint or the initial values, at `to`.
  absl::Status ReadInto(float* to, int64_t numel,
                        const std::function<absl::Status(float*)>& read) const;
  static absl::Status FinishSums(const kernels::Context& ctx, Arrivals* arrivals);
  absl::Status PublishMasters(const kernels::Context& ctx);
  absl::Status StartGather(Bucket* bucket);

  const Mesh* mesh_;
  ParameterStore* store_;
  OptimizerConfig config_;
  std::array<State, 2> states_;
  std::vector<Bucket> buckets_;       // in the order of the forward pass
  size_t unreduced_ = 0;              // buckets whose sums have not been started: the first so many
  std::array<Arrivals, 2> arrivals_;  // of what was started last, and before
};

/// The manifest's list: model/ of every parameter, adam_m/ and adam_v/ of those that train, f32.
std::vector<v1::TensorRecord> CheckpointTensors(const ParameterStore& store);

/// "model/<name>" of a checkpoint as a source; `reader` must outlive it.
ParameterSource CheckpointSource(checkpoints::StepReader* reader);

}  // namespace ela::trainer
