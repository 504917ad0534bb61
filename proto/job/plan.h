// Pure functions of a resolved job: parameters and memory. The coordinator, the command line and
// the trainer share them, so that what `ela validate` promises is what the trainer allocates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ela/v1/job.pb.h"

namespace ela::job {

/// One parameter tensor of the model, in the order of the flat parameter buffers (design: model.md
/// section 5).
struct ParameterInfo {
  std::string name;            // "layers.3.moe.experts.1.up.weight"
  std::vector<int64_t> shape;  // rows are outputs
  bool is_expert = false;      // one expert's own tensor: sharded over the expert group
  bool decays = true;          // weight decay applies (not to gains and biases)
  int64_t part = 0;            // 0: the embedding, i + 1: layer i, the last one with the final norm
  int64_t numel() const;
};

/// A parameter of a memory lobe: all that `train_only: memory_lobe` trains.
bool IsOfLobe(const ParameterInfo& parameter);

/// All parameters in the one fixed order: embed, then per layer norm1, attn q k v o, norm2, router
/// weight, router bias, experts (up, down each), lobe norm q k v; final_norm last. Tied output: the
/// embedding only.
std::vector<ParameterInfo> Parameters(const v1::ModelSpec& model);
int64_t ParameterCount(const v1::ModelSpec& model);

/// Where a flat buffer's parameters of one part begin, from its begin in elements, and where the
/// last one ends [n + 1]. Each begins at a multiple of kParameterAlignment, as fast products and
/// 16-byte accesses want it; only a matrix behind one of as many columns follows without a gap, so
/// that q, k and v are one.
inline constexpr int64_t kParameterAlignment = 64;  // 128 bytes of bf16
std::vector<int64_t> FlatOffsets(const std::vector<ParameterInfo>& parameters);

/// How ranks share a flat buffer of parameters. What a part has in it is padded with zeros to
/// PaddedPart elements and cut into buckets of at most LongestBucket; each bucket is summed,
/// updated and gathered as one, and its elements are dealt to the ranks in equal pieces, aligned
/// as parameters are.
inline constexpr int64_t kBucketNumel = int64_t{1} << 22;
int64_t PaddedPart(int64_t numel, int64_t ranks);
int64_t LongestBucket(int64_t ranks, int64_t bucket_numel = kBucketNumel);

/// Parameters that take part in products per token (experts: top_k of them; embedding once, as the
/// output head), and the model FLOPs of one trained token: 6 x those, plus 12 L H D per softmax
/// layer at sequence length L.
int64_t ActiveParameterCount(const v1::ModelSpec& model);
double ModelFlopsPerToken(const v1::ModelSpec& model, int64_t seq_len);

struct MemoryPlan {  // bytes on one rank
  int64_t parameters = 0;
  int64_t gradients = 0;    // this rank's, and where those of the others arrive
  int64_t optimizer = 0;    // ZeRO-1 shard: fp32 masters (bf16 only), both moments of what trains
  int64_t activations = 0;  // saved for the backward pass, one micro-batch
  int64_t workspace = 0;    // scratch, dispatch and collective buffers
  int64_t staging = 0;      // the snapshot of an asynchronous checkpoint
  int64_t total() const {
    return parameters + gradients + optimizer + activations + workspace + staging;
  }
  /// Of the device's memory, where it has its own, or of the host's.
  int64_t taken(bool on_device) const { return on_device ? total() - staging : total(); }
};
/// On a CUDA device (of 132 multiprocessors, where that matters) or on the CPU; by default what
/// resources.device asks for, with auto the CPU. A device's own share (context, libraries, NCCL's
/// buffers) is not in it; staging is the host's.
MemoryPlan PlanMemory(const v1::TrainingJob& resolved, bool on_device);
MemoryPlan PlanMemory(const v1::TrainingJob& resolved);

/// Layers, from the first, whose activations are computed again in the backward pass: 0 without
/// training.recompute, all where training.recompute_layers does not say.
int64_t RecomputedLayers(const v1::JobSpec& spec);
/// The fewest with which a rank takes at most `bytes`; all if none suffices.
int64_t FewestRecomputedLayers(const v1::TrainingJob& resolved, bool on_device, int64_t bytes);
/// The largest micro-batch, up to the job's, that the batch is made of and with which a rank takes
/// at most `bytes`; 0: none.
int64_t LargestMicroBatch(const v1::TrainingJob& resolved, bool on_device, int64_t bytes);

}  // namespace ela::job
