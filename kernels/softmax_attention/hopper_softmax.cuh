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

/// The softmax so far of this thread's two rows, kept online. `sum` is of the thread's own columns.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};

  __device__ static float Base(float largest) { return largest == -INFINITY ? 0.0f : largest; }

  /// Scores to weights 2^(scale (s - largest)); returns what brings earlier sums to the new base.
  __device__ float2 Fold(float (&s)[64], float scale) {
    float now[2] = {largest[0], largest[1]};
#pragma unroll
    for (int i = 0; i < 64; ++i) now[i % 4 / 2] = fmaxf(now[i % 4 / 2], s[i]);
    float base[2], shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      now[r] = fmaxf(now[r], __shfl_xor_sync(0xffffffffu, now[r], 1));
      now[r] = fmaxf(now[r], __shfl_xor_sync(0xffffffffu, now[r], 2));
      base[r] = Base(now[r]) * scale;
      shrink[r] = hopper::Exp2(fmaf(largest[r], scale, -base[r]));
      largest[r] = now[r];
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = hopper::Exp2(fmaf(s[i], scale, -base[i % 4 / 2]));
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i % 4 / 2] += s[i];
    return {shrink[0], shrink[1]};
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
