// What warpgroups of the forward kernel do beside products: take turns, mask scores, and turn them
// into weights.
#pragma once

#include "kernels/softmax_attention/hopper_tile.cuh"

namespace ela::kernels::cuda::softmax {

#ifdef ELA_HOPPER_CODE

/// Warpgroups issue their products in turn.
template <int kGroups>
struct Turns {
  int group;
  static constexpr int kFirstBarrier = 1;
  __device__ void Wait() const {
    asm volatile("bar.sync %0, 256;" ::"r"(kFirstBarrier + group) : "memory");
  }
  __device__ void Pass() const {
    const int next = group + 1 == kGroups ? 0 : group + 1;
    asm volatile("bar.arrive %0, 256;" ::"r"(kFirstBarrier + next) : "memory");
  }
};

/// The softmax so far of this thread's two rows, kept online: weights are 2^(scale (s - base)). The
/// base follows the largest score of the row once that is 2^8 above it, so that what was summed
/// before is seldom brought to a new one. `sum` is of the thread's own columns.
struct Softmax {
  static constexpr float kSlack = 8.0f;
  float base[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};

  /// Scores to weights. Returns whether earlier sums of some row of the warp are to be multiplied
  /// by `shrink`.
  __device__ bool Fold(float (&s)[64], float scale, float (&shrink)[2]) {
    float top[4] = {base[0], base[0], base[1], base[1]};
#pragma unroll
    for (int i = 0; i < 64; ++i) top[i % 4] = fmaxf(top[i % 4], s[i]);
    bool grows = false;
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = fmaxf(top[2 * r], top[2 * r + 1]);
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      shrink[r] = 1.0f;
      if ((now - base[r]) * scale > kSlack) {
        shrink[r] = hopper::Exp2((base[r] - now) * scale);
        sum[r] *= shrink[r];
        base[r] = now;
        grows = true;
      }
      offset[r] = base[r] == -INFINITY ? 0.0f : -base[r] * scale;
    }
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      s[i] = hopper::Exp2(fmaf(s[i], scale, offset[i % 4 / 2]));
      part[i % 4] += s[i];
    }
    sum[0] += part[0] + part[1];
    sum[1] += part[2] + part[3];
    return __any_sync(0xffffffffu, grows);
  }
  __device__ void Finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    }
  }
};

/// Scores of pairs that don't meet become -inf.
__device__ inline void Mask(float (&s)[64], const Place (&rows)[2], const Place* keys) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const int4 two = *reinterpret_cast<const int4*>(keys + 8 * j + 2 * t);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!Meet(rows[r], two.x, two.y)) s[4 * j + 2 * r] = -INFINITY;
      if (!Meet(rows[r], two.z, two.w)) s[4 * j + 2 * r + 1] = -INFINITY;
    }
  }
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::softmax
