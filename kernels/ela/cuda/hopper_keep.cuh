// How the keepers of a scan (warpgroups, each with 64 features of the state) weigh a step's keys.
#pragma once

#include "kernels/ela/cuda/hopper_features.cuh"

namespace ela::kernels::cuda::hopper {

#ifdef ELA_HOPPER_CODE

/// The shifts of a window's rows.
template <bool kReverse, bool kFlat>
__device__ auto ShiftsOf(const KeyRows& in) {
  const auto begin = static_cast<float>(in.window.begin), end = static_cast<float>(in.window.end);
  if constexpr (kReverse) {
    return GradientRows<kFlat>(in.lse, in.extra, -in.decay * end, in.decay);
  } else {
    return RowsOf<kFlat>(-in.decay * (1.0f - begin), -in.decay);
  }
}

/// The longest window from where `in.window` starts (in scan order) that does not grow too much,
/// for all keepers. Slow: one thread walks one column. m: gauges of the thread's features.
template <bool kReverse, int kPanels>
__device__ Window ShrinkWindow(const KeyRows& in, int panel, const float (&m)[2],
                               int* shared_rows) {
  const Window window = in.window;
  const int count = window.end - window.begin;
  const auto lane = static_cast<int>(threadIdx.x % 32u);
  const float low = __shfl_sync(0xffffffffu, m[0], lane % 8 * 4);
  const float high = __shfl_sync(0xffffffffu, m[1], lane % 8 * 4);
  if (threadIdx.x == 0) *shared_rows = count;
  GroupBarrier<kPanels>(kKeepersBarrier);
  if (lane < 16) {
    const int column = 64 * panel + static_cast<int>(threadIdx.x % 128u / 32u) * 16 + lane;
    const int rows = RowsInRange<kReverse>(in, column, lane < 8 ? low : high);
    if (rows < count) atomicMin(shared_rows, rows);
  }
  GroupBarrier<kPanels>(kKeepersBarrier);
  const int rows = *shared_rows;
  return kReverse ? Window{window.end - rows, window.end}
                  : Window{window.begin, window.begin + rows};
}

/// Weighs as many of a chunk's rows, `in.window`, as may be weighed at once, and returns them; r:
/// their gauges; sum: what normalisers gain.
template <bool kReverse, bool kFlat, int kPanels>
__device__ Window WeighStep(KeyRows in, int panel, const Features<kPanels>& own, const Place& at,
                            unsigned long long* slow_chunks, int* shared_rows, Keys* keys,
                            float (&r)[2], float (&sum)[2]) {
  const uint32_t tile = SharedAddress(in.keys) + static_cast<uint32_t>(panel * kPanelBytes);
  const auto weigh = [&](bool search) {
    // Exponents of queries say nothing of their size.
    keys->Load(tile, at.warp, in.window, search || kReverse);
    const auto rows = ShiftsOf<kReverse, kFlat>(in);
    if (search) {
      keys->Largest(rows, r);
      r[0] = fmaxf(own.m[0], r[0]), r[1] = fmaxf(own.m[1], r[1]);
    }
    const bool fits = keys->Weigh(rows, r, sum);
    sum[0] = QuadSum(sum[0]), sum[1] = QuadSum(sum[1]);
    return fits && fminf(r[0], r[1]) >= kLeastGauge;
  };
  const int count = in.window.end - in.window.begin;
  const float advance = kFlat ? 0.0f : -in.decay * static_cast<float>(count);
  const bool advances = advance > kLeastAdvance && advance < kMostAdvance;
  r[0] = own.m[0], r[1] = own.m[1];
  if (advances) r[0] += advance, r[1] += advance;
  bool fits = weigh(false), grows = false;
  if (advances) {
    if constexpr (kReverse) {  // normalisers have either sign
      fits &= keys->Reach();
    } else {
      const float kept = Exp2(-advance);
      fits &= fminf(fmaf(own.c[0], kept, sum[0]), fmaf(own.c[1], kept, sum[1])) >= kLeastNormaliser;
    }
  }
  if (!__all_sync(0xffffffffu, fits)) {
    weigh(true);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int first = kReverse ? in.window.end - 1 : in.window.begin;
      const float start = KeyExponent<kReverse>(in, first, 64 * panel + at.row + 8 * i);
      // NaN does not grow; nor does one row, or a walk would never end.
      grows |= count > 1 && r[i] - fmaxf(own.m[i], start) > kMaxGrowth;
    }
  }
  if (GroupAny<kPanels>(kKeepersBarrier, grows)) {
    if (threadIdx.x == 0) atomicAdd(slow_chunks, 1ull);
    in.window = ShrinkWindow<kReverse, kPanels>(in, panel, own.m, shared_rows);
    weigh(true);
  }
  return in.window;
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
