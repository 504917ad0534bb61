// The sizes of a job that its memory plan is made of.
#pragma once

#include <algorithm>
#include <cstdint>

#include "proto/job/plan.h"

namespace ela::job {

inline constexpr int64_t kFloat = 4;  // bytes
inline constexpr int64_t kIndex = 4;

inline constexpr int64_t kAlignment = 256;  // of every tensor in an arena

inline int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// One tensor of an arena.
inline int64_t Block(int64_t numel, int64_t element) {
  return RoundUp(numel * element, kAlignment);
}

// The sizes that every line of the plan is made of.
struct Sizes {
  Sizes(const v1::TrainingJob& job, bool on_device) : model(job.spec().model()), device(on_device) {
    const v1::JobSpec& spec = job.spec();
    ranks = std::max<int64_t>(1, spec.parallelism().data() * spec.parallelism().sequence());
    sequence = std::max<int64_t>(1, spec.parallelism().sequence());
    expert = std::max<int64_t>(1, spec.parallelism().expert());
    b = spec.training().micro_batch_size();
    t = b * ((spec.data().seq_len() + sequence - 1) / sequence);
    d = model.hidden_size();
    e = model.moe().num_experts();
    k = model.moe().top_k();
    f = model.moe().intermediate_size();
    element = spec.training().precision() == v1::PRECISION_BF16 ? 2 : 4;
    masked = spec.training().objective() == v1::OBJECTIVE_MASKED_TOKEN;
    recomputed = RecomputedLayers(spec);
    dense = e == 1 && model.moe().label_bias() == v1::LABEL_BIAS_NONE;
    pre_norm = model.residual() == v1::RESIDUAL_PRE_NORM;
    lobe_only = spec.training().train_only() == v1::TRAIN_ONLY_MEMORY_LOBE;
    packed = spec.data().document_mask();
  }
  const v1::ModelSpec& model;
  bool device;
  int64_t ranks, sequence, expert;
  int64_t b, t;        // sequences and tokens of a micro-batch on this rank
  int64_t d, e, k, f;  // width, experts, experts per token, their hidden width
  int64_t element;     // bytes of a parameter or activation
  int64_t recomputed;  // layers, from the first
  bool masked, lobe_only;
  bool dense;  // one expert, which pays no routing
  bool pre_norm;
  bool packed;  // sequences of documents, as many as there may be
};

}  // namespace ela::job
