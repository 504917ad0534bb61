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
/// base need not be the largest score, only near enough: bf16 and float hold weights up to 2^127.
/// They may reach 2^60, and sums of weights times v are finite where |v| is below 2^60.
/// So the largest score is searched for only where one may lie above the base by kRoom powers of
/// two, which the sum of squares tells: units other than those that products slow down add it up.
/// A row's base depends on its own scores alone. `sum` is of the thread's own columns.
struct Softmax {
  static constexpr float kRoom = 60.0f;
  static constexpr float kSlack = 8.0f;       // that a base may lag once searched for
  static constexpr float kLargest = 0x1p60f;  // of a sum; then the base rises by kRoom
  float base[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
  float limit[2] = {-1.0f, -1.0f};  // of the sum of squares

  /// Scores to weights. Returns whether earlier sums of some row of the warp are to be multiplied
  /// by `shrink`.
  __device__ bool Fold(float (&s)[64], float scale, float (&shrink)[2]) {
    float squares[4] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) squares[i % 4] = fmaf(s[i], s[i], squares[i % 4]);
    unsigned far[2];  // lanes; NaN is far
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      far[r] = __ballot_sync(0xffffffffu, !(squares[2 * r] + squares[2 * r + 1] <= limit[r]));
    }
    bool grows = false;
    shrink[0] = shrink[1] = 1.0f;
    if ((far[0] | far[1]) != 0) grows = Search(s, scale, far, shrink);
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) offset[r] = base[r] == -INFINITY ? 0.0f : -base[r] * scale;
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      s[i] = hopper::Exp2(fmaf(s[i], scale, offset[i % 4 / 2]));
      part[i % 4] += s[i];
    }
    sum[0] += part[0] + part[1];
    sum[1] += part[2] + part[3];
#pragma unroll
    for (int r = 0; r < 2; ++r) limit[r] = sum[r] <= kLargest ? limit[r] : -1.0f;
    return grows;
  }
  __device__ void Finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    }
  }

 private:
  /// Brings bases of rows that are far in some lane near the largest scores. Returns whether a row
  /// of the warp has a new one.
  __device__ bool Search(const float (&s)[64], float scale, const unsigned (&far)[2],
                         float (&shrink)[2]) {
    float top[4] = {base[0], base[0], base[1], base[1]};
#pragma unroll
    for (int i = 0; i < 64; ++i) top[i % 4] = fmaxf(top[i % 4], s[i]);
    const unsigned first_lane = threadIdx.x % 32 / 4 * 4;  // of the row's four
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = fmaxf(top[2 * r], top[2 * r + 1]);
      if (sum[r] > kLargest) now = fmaxf(now, base[r] + kRoom / scale);
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      if ((far[r] >> first_lane & 0xfu) == 0) continue;
      if ((now - base[r]) * scale > kSlack) {
        shrink[r] = hopper::Exp2((base[r] - now) * scale);
        sum[r] *= shrink[r];
        base[r] = now;
        grows = true;
      }
      const float largest = fminf(base[r] + kRoom / scale, 0x1p60f);  // its square is finite
      limit[r] = largest > 0.0f ? largest * largest : -1.0f;
    }
    return __any_sync(0xffffffffu, grows);
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
