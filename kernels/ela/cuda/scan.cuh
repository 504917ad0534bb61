// What the CUDA scans of this folder share: the state's layout, the device copy of a plan, loads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/check.h"
#include "kernels/context.h"
#include "kernels/cuda_support.h"
#include "kernels/ela/cuda/plan.h"
#include "kernels/ela/ela.h"
#include "kernels/tensor.h"

namespace ela::kernels::cuda {

inline constexpr float kEmptyMax = -1e30f;  // running maximum that has seen nothing
inline constexpr float kKernelEps = 1e-6f;  // of the polynomial kernels

/// Where things are inside the state of one head: S [F][Dv], C [F], m [F] (hadamard_exp only), and
/// the sum of the log decay over the state's tokens. The size is the folder's, for every back end.
struct StateLayout {
  int features = 0, values = 0;
  int c = 0, m = 0, shift = 0;
  int64_t size = 0;  // floats of a head
};

inline bool IsExp(FeatureMap kernel) { return kernel == FeatureMap::kHadamardExp; }

inline int NumFeatures(const ElaConfig& config) {
  const int d = static_cast<int>(config.head_dim);
  switch (config.kernel) {
    case FeatureMap::kHadamardExp:
      return d;
    case FeatureMap::kModulatedDot:
      return d + 1;
    case FeatureMap::kSumSquared:
    case FeatureMap::kSubSquared:
      return d + 2;
  }
  return 0;
}

StateLayout LayoutOf(const ElaConfig& config);

struct DeviceItem {
  int64_t begin, end;
  int32_t span, slot;
  int32_t first_slot, last_slot;  // of its chain; a bidirectional total is left in the first
};

struct DeviceChain {
  int32_t first_slot, count;
  int32_t span, unused;
};

struct SpanEdges {
  int32_t first, last;  // the sequence whose first / last span this is, or -1
};

/// A plan and what goes with it, in device memory.
struct DevicePlan {
  const int64_t* span_begin;
  const SpanEdges* edges;
  const DeviceItem* items;
  const DeviceChain* chains;
  const float* log_decay;  // [H], 0 where there is none
  int num_items, num_chains;
};

/// Copies into memory taken from ctx.scratch, through kernel parameters: no host memory is read
/// after the call, so a stream capture can replay it.
DevicePlan Upload(const Context& ctx, const ScanPlan& plan, const Spans& spans,
                  const ElaConfig& config);

/// What of a plan in device memory is one of its groups.
inline DevicePlan PartOf(DevicePlan plan, const ScanGroup& group) {
  plan.items += group.first_item, plan.num_items = group.num_items;
  plan.chains += group.first_chain, plan.num_chains = group.num_chains;
  return plan;
}

/// Log decay of each head as part of a kernel's parameters.
struct HeadDecay {
  float few[64];      // of at most 64 heads
  const float* many;  // of more, or null
#ifdef __CUDACC__
  __device__ float operator[](int head) const { return many != nullptr ? many[head] : few[head]; }
#endif
};
/// Memory for many heads is taken from ctx.scratch.
HeadDecay HeadDecayOf(const Context& ctx, const ElaConfig& config);

/// states [slots, H, size]: tails of the segments on entry. Exclusive: each becomes the fold of the
/// edge state and the segments scanned before it; else the chain's first slot becomes the total.
/// The edge states [B, H, size] (null: identity) enter before (in scan order) and, for totals,
/// after. `reverse`: the scan runs from the last segment to the first.
struct FoldRequest {
  float* states = nullptr;
  const float* before = nullptr;
  const float* after = nullptr;
  bool reverse = false, exclusive = false;
};
void FoldChains(const Context& ctx, const DevicePlan& plan, const ElaConfig& config,
                const FoldRequest& request);

/// [B, H, size] = what has seen nothing; and the totals of `plan`'s chains (see FoldRequest) into
/// the rows of their sequences.
void FillIdentity(const Context& ctx, const Tensor& states, const ElaConfig& config);
void ExportTotals(const Context& ctx, const DevicePlan& plan, const ElaConfig& config,
                  const float* slots, const Tensor& states);
/// acc = acc (+) later for the sequences with take[b] != 0, or all.
void FoldStates(const Context& ctx, const Tensor& acc, const Tensor& later, const ElaConfig& config,
                const std::vector<uint8_t>& take);

#ifdef __CUDACC__

/// One element of a state and the gauge of its row.
struct StateElement {
  float m, x;
};

/// acc (+) later, whose tokens shift acc by `shift` in the log. The identity changes no bit.
__device__ inline StateElement Combine(StateElement acc, StateElement later, float shift,
                                       bool exp_kernel) {
  if (!exp_kernel) return {0.0f, acc.x * expf(shift) + later.x};
  const float shifted = acc.m + shift;
  const float m = fmaxf(fmaxf(shifted, later.m), kEmptyMax);
  return {m, acc.x * expf(shifted - m) + later.x * expf(later.m - m)};
}

/// Offset of column c of feature f; column Dv is the normaliser.
__device__ inline int OffsetOf(const StateLayout& l, int f, int column) {
  return column < l.values ? f * l.values + column : l.c + f;
}

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void Store(float* to, float x) { *to = x; }
__device__ inline void Store(__nv_bfloat16* to, float x) { *to = __float2bfloat16(x); }

/// Elements beyond 2^20 count as 2^20, as on the other back ends; NaN stays.
__device__ inline float Saturate(float x) {
  constexpr float kLargest = 1 << 20;
  return x > kLargest ? kLargest : x < -kLargest ? -kLargest : x;
}

#endif

}  // namespace ela::kernels::cuda
