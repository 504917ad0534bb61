// The Hopper path: hadamard_exp, bf16, head dims 64 and 128.
#pragma once

#include <initializer_list>

#include "kernels/context.h"
#include "kernels/ela/cuda/scan.cuh"
#include "kernels/ela/ela.h"
#include "kernels/tensor.h"

namespace ela::kernels::cuda {

/// Whether the path applies: the card, the kernel, the head dims, and every tensor's type,
/// alignment and stride (16 bytes).
bool HopperApplies(const Context& ctx, const ElaConfig& config,
                   std::initializer_list<Tensor> tensors);

/// Thread blocks that fill the card.
int64_t HopperBlocks(const Context& ctx, const ElaConfig& config);

/// States of the segments of a plan. With lse and minus_delta [T, H]: gradient states, whose keys
/// are the queries.
struct HopperStates {
  Tensor keys, values;
  const float* lse = nullptr;
  const float* minus_delta = nullptr;
  bool prefixes = false;  // only prefixes along the chains are wanted
};
void RunHopperStates(const Context& ctx, const HopperStates& op, const DevicePlan& plan,
                     float* states, const ElaConfig& config);

struct HopperForward {
  Tensor y, lse, q, k, v;
  const float* before = nullptr;  // [B, H, size] or null, as all of these
  const float* after = nullptr;
  Tensor segments;  // empty: not wanted
};
void RunHopperForward(const Context& ctx, const HopperForward& op, const ElaConfig& config,
                      const Spans& spans);

struct HopperBackward {
  Tensor dq, dk, dv, dy, q, k, v;
  const float* lse = nullptr;
  const float* before = nullptr;
  const float* after = nullptr;
  const float* gbefore = nullptr;
  const float* gafter = nullptr;
  Tensor segments;  // empty: found again
};
void RunHopperBackward(const Context& ctx, const HopperBackward& op, const ElaConfig& config,
                       const Spans& spans);

/// Floats of `segments`; 0 where a scan needs no states of segments.
int64_t HopperSegmentFloats(const Context& ctx, const ElaConfig& config, const Spans& spans);

/// One token of each of B sequences; states [B, H, size] at a multiple of 16 bytes.
void RunHopperDecode(const Context& ctx, const Tensor& y, float* states, const Tensor& q,
                     const Tensor& k, const Tensor& v, const ElaConfig& config);

}  // namespace ela::kernels::cuda
