// How tiles of keys and queries become weights: bf16 powers of 2 of what exceeds a gauge.
//
// A gauge is a number that exponents are taken against, and drops out of every result; it has to
// keep weights in range, not to be the largest exponent. So a tile is weighed at the gauge that
// there is, the weights say whether that was in range, and only where it was not, exponents are
// searched for a new one.
#pragma once

#include "kernels/ela/cuda/hopper_scan.cuh"

namespace ela::kernels::cuda::hopper {

inline constexpr int kWeigherBarrier = 1;  // named barriers of warpgroups, from here on

// Keys of weight up to 2^8 keep their feature's gauge. Below kLeastGauge a key may be nearer than
// 2^20 to the gauge and beyond it in size, where it counts as 2^20.
inline constexpr uint32_t kMostOfKeys = 0x43804380u;  // two of 2^8
inline constexpr float kLeastGauge = -0x1p19f;
// A row of queries keeps its gauge if its largest weight is in [2^-16, 2^60]. With keys' weights in
// [2^-87, 2^8] (kMaxGrowth) products then lose nothing that is within 2^-23 of the largest, and
// sums of 2^30 rows are finite. A new gauge puts a warp's largest weight at 2^kQueryHead.
inline constexpr uint32_t kLeastOfQueries = 0x37803780u;  // two of 2^-16
inline constexpr uint32_t kMostOfQueries = 0x5d805d80u;   // two of 2^60
inline constexpr float kQueryHead = 30.0f;

#ifdef ELA_HOPPER_CODE

inline constexpr uint32_t kNoKeys = 0xff80ff80u;  // two of minus infinity: of weight zero

/// Feature column of a panel that this thread keeps the gauge and the normaliser of. Threads of a
/// warpgroup work in groups of 16 on 8 columns, each on 4 rows; two threads keep the same column.
__device__ inline int OwnColumn() {
  const int lane = static_cast<int>(threadIdx.x % 16u);
  return static_cast<int>(threadIdx.x % 128u / 16u) * 8 + (lane >> 3) * 4 + ((lane >> 2) & 1) * 2 +
         ((lane >> 1) & 1);
}

/// x[c] over the 16 threads of a group, combined; the thread's own column's result.
template <class Combine>
__device__ float ReduceColumns(float (&x)[8], const Combine& combine) {
  const int lane = static_cast<int>(threadIdx.x);
  float half[4], quarter[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float give = lane & 8 ? x[i] : x[i + 4], keep = lane & 8 ? x[i + 4] : x[i];
    half[i] = combine(keep, __shfl_xor_sync(0xffffffffu, give, 8));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float give = lane & 4 ? half[i] : half[i + 2], keep = lane & 4 ? half[i + 2] : half[i];
    quarter[i] = combine(keep, __shfl_xor_sync(0xffffffffu, give, 4));
  }
  const float give = lane & 2 ? quarter[0] : quarter[1], keep = lane & 2 ? quarter[1] : quarter[0];
  const float own = combine(keep, __shfl_xor_sync(0xffffffffu, give, 2));
  return combine(own, __shfl_xor_sync(0xffffffffu, own, 1));
}

/// A warp's 16 rows of queries as weights 2^(q log2(e) + R - gauge) of a read-out, in A fragments.
template <int kPanels>
struct Queries {
  uint32_t a[4 * kPanels][4];
  float gauge[2];  // of the thread's two rows

  /// At the gauge `guess`, or if that is out of range for a row of the warp at each row's own,
  /// which leaves a better guess.
  __device__ void Weigh(uint32_t tile, const float* r, int warp, float* guess) {
    gauge[0] = gauge[1] = *guess;
    if (__all_sync(0xffffffffu, WeighAt(tile, r, warp, *guess))) return;
    WeighExactly(tile, r, warp);
    float most = fmaxf(gauge[0], gauge[1]);
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
    }
    *guess = most - kQueryHead;
  }

 private:
  /// Whether the gauge is in range for the quad's two rows.
  __device__ bool WeighAt(uint32_t tile, const float* r, int warp, float guess) {
    const float* own_r = r + threadIdx.x % 4u * 2u;
    uint32_t most[2] = {};
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) LoadFragment(a[s], tile, warp, s);
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 at = *reinterpret_cast<const float2*>(own_r + 16 * s + 8 * half);
        const float x = at.x - guess, y = at.y - guess;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& pair = a[s][2 * half + i];
          const float2 q = Unpack(pair);
          pair = Pack(Exp2(fmaf(q.x, kLog2E, x)), Exp2(fmaf(q.y, kLog2E, y)));
          most[i] = Max2(most[i], pair);
        }
      }
    }
    // Both rows' largest in one pair.
    uint32_t both =
        Max2(__byte_perm(most[0], most[1], 0x5410), __byte_perm(most[0], most[1], 0x7632));
    both = Max2(both, __shfl_xor_sync(0xffffffffu, both, 1));
    both = Max2(both, __shfl_xor_sync(0xffffffffu, both, 2));
    return Max2(both, kMostOfQueries) == kMostOfQueries && Max2(both, kLeastOfQueries) == both;
  }

  __device__ void WeighExactly(uint32_t tile, const float* r, int warp) {
    const float* own_r = r + threadIdx.x % 4u * 2u;
    gauge[0] = gauge[1] = 2.0f * kEmptyMax;
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) {
      LoadFragment(a[s], tile, warp, s);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 at = *reinterpret_cast<const float2*>(own_r + 16 * s + 8 * (i / 2));
        a[s][i] = Saturate2(a[s][i]);
        const float2 q = Unpack(a[s][i]);
        gauge[i % 2] = fmaxf(gauge[i % 2], fmaxf(fmaf(q.x, kLog2E, at.x), fmaf(q.y, kLog2E, at.y)));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      gauge[i] = fmaxf(gauge[i], __shfl_xor_sync(0xffffffffu, gauge[i], 1));
      gauge[i] = fmaxf(gauge[i], __shfl_xor_sync(0xffffffffu, gauge[i], 2));
    }
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 at = *reinterpret_cast<const float2*>(own_r + 16 * s + 8 * (i / 2));
        const float2 q = Unpack(a[s][i]);
        a[s][i] = Pack(Exp2(fmaf(q.x, kLog2E, at.x) - gauge[i % 2]),
                       Exp2(fmaf(q.y, kLog2E, at.y) - gauge[i % 2]));
      }
    }
  }
};

/// What turns a tile of keys into weights 2^(x - R), x = (key - lse[row]) log2(e), less the decay.
/// Weights times extra[row] add to the normaliser. Both are null where keys are not queries: 0, 1.
struct KeyRows {
  const unsigned char* keys;
  Window window;
  float decay;  // base 2
  const float* lse;
  const float* extra;
};

/// Exponent of the key in a row and column.
template <bool kReverse>
__device__ float KeyExponent(const KeyRows& in, int row, int column) {
  const auto bits =
      *reinterpret_cast<const uint16_t*>(in.keys + ChunkOffset(row, column / 8) + column % 8 * 2);
  const float key = Saturate(__uint_as_float(static_cast<uint32_t>(bits) << 16));
  const float shift = in.decay * in.window.Step<kReverse>(row);
  return fmaf(key, kLog2E, -(kReverse ? fmaf(in.lse[row], kLog2E, shift) : shift));
}

/// A thread's part of a panel of keys: 4 rows, 16 apart, of 8 columns. kFlat: no shift of rows.
template <bool kReverse, bool kFlat>
struct KeyPart {
  uint32_t pairs[4][4];

  static __device__ int Row(int i) { return static_cast<int>(threadIdx.x % 16u) + 16 * i; }
  static __device__ int Group() { return static_cast<int>(threadIdx.x % 128u / 16u); }
  static __device__ int Offset(int panel) {  // of row 0; the others lie 16 rows further
    return panel * kPanelBytes + ChunkOffset(Row(0), Group());
  }
  static __device__ float Shift(const KeyRows& in, int i) {
    if constexpr (kFlat) return 0.0f;
    const float shift = in.decay * in.window.template Step<kReverse>(Row(i));
    return kReverse ? fmaf(in.lse[Row(i)], kLog2E, shift) : shift;
  }

  __device__ void Load(const KeyRows& in, int panel, bool saturate) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 x = *reinterpret_cast<const uint4*>(in.keys + Offset(panel) + i * 16 * 128);
      pairs[i][0] = x.x, pairs[i][1] = x.y, pairs[i][2] = x.z, pairs[i][3] = x.w;
    }
    if (saturate) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) pairs[i][c] = Saturate2(pairs[i][c]);
      }
    }
    if (in.window.begin == 0 && in.window.end == kTileRows) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool live = in.window.Holds(Row(i));
#pragma unroll
      for (int c = 0; c < 4; ++c) pairs[i][c] = live ? pairs[i][c] : kNoKeys;
    }
  }

  /// The own column's largest x.
  __device__ float Largest(const KeyRows& in) const {
    float top[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) top[c] = kEmptyMax;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float shift = Shift(in, i);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 two = Unpack(pairs[i][c]);
        top[2 * c] = fmaxf(top[2 * c], fmaf(two.x, kLog2E, -shift));
        top[2 * c + 1] = fmaxf(top[2 * c + 1], fmaf(two.y, kLog2E, -shift));
      }
    }
    return ReduceColumns(top, [](float a, float b) { return fmaxf(a, b); });
  }

  /// Keys become weights; returns whether they are in range. The sums of columns are of what was
  /// rounded: over a chunk or more, errors of rounding average out.
  __device__ bool Weigh(const KeyRows& in, int panel, const float* r, float (&sum)[8]) {
    const float* group_r = r + 64 * panel + 8 * Group();
    const float4 r0 = *reinterpret_cast<const float4*>(group_r);
    const float4 r1 = *reinterpret_cast<const float4*>(group_r + 4);
    const float gauge[8] = {r0.x, r0.y, r0.z, r0.w, r1.x, r1.y, r1.z, r1.w};
    uint32_t most = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float shift = Shift(in, i);
      float extra = 1.0f;
      if constexpr (kReverse) extra = in.window.Holds(Row(i)) ? in.extra[Row(i)] : 0.0f;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 key = Unpack(pairs[i][c]);
        float x = fmaf(key.x, kLog2E, -(kFlat ? gauge[2 * c] : shift));
        float y = fmaf(key.y, kLog2E, -(kFlat ? gauge[2 * c + 1] : shift));
        if constexpr (!kFlat) x -= gauge[2 * c], y -= gauge[2 * c + 1];
        x = Exp2(x), y = Exp2(y);
        pairs[i][c] = Pack(x, y);
        most = Max2(most, pairs[i][c]);
        sum[2 * c] = kReverse ? fmaf(x, extra, sum[2 * c]) : sum[2 * c] + x;
        sum[2 * c + 1] = kReverse ? fmaf(y, extra, sum[2 * c + 1]) : sum[2 * c + 1] + y;
      }
    }
    return Max2(most, kMostOfKeys) == kMostOfKeys;
  }

  __device__ void Store(unsigned char* weights, int panel) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<uint4*>(weights + Offset(panel) + i * 16 * 128) =
          make_uint4(pairs[i][0], pairs[i][1], pairs[i][2], pairs[i][3]);
    }
  }
};

/// A normaliser as two rows of an operand of products.
__device__ inline void StoreHalves(unsigned char* halves, int column, float c) {
  const auto upper = __float2bfloat16_rn(c);
  unsigned char* at = halves + column / 64 * kNarrowBytes + column % 8 * 2;
  const int chunk = column % 64 / 8;
  *reinterpret_cast<__nv_bfloat16*>(at + chunk * 16) = upper;
  *reinterpret_cast<__nv_bfloat16*>(at + 128 + (chunk ^ 1) * 16) =
      __float2bfloat16_rn(c - __bfloat162float(upper));
}

/// Weighs a panel of keys, bf16, rows outside the window as zeros, by one warpgroup. own, next: the
/// features' gauges and normalisers before and after the window. raised: whether a gauge of this
/// warp's columns changes; grows: whether a key grows too much within the window.
template <bool kReverse, bool kFlat>
__device__ void WeighPanel(const KeyRows& in, int panel, unsigned char* weights,
                           const Gauges& gauges, const OwnFeature* own, OwnFeature* next,
                           bool* raised, bool* grows) {
  const bool writer = threadIdx.x % 2u == 0;
  const int column = OwnColumn() + 64 * panel, count = in.window.end - in.window.begin;
  const OwnFeature before = own[column];
  KeyPart<kReverse, kFlat> part;
  float r = before.m, sum[8];
  // Decay lowers what a gauge is worth: where it does by much, keys are above the gauge.
  for (bool search = in.decay * static_cast<float>(count) < -1.0f;; search = true) {
    part.Load(in, panel, search);
    if (search) r = fmaxf(r, part.Largest(in));
    if (writer) gauges.r[column] = r;
    __syncwarp();
    const bool fits = part.Weigh(in, panel, gauges.r, sum) && r >= kLeastGauge;
    if (search || __all_sync(0xffffffffu, fits)) {
      *raised |= search;
      break;
    }
  }
  part.Store(weights, panel);
  const float shrink = Exp2(before.m - r), norm = before.c * shrink;
  const float c = norm + ReduceColumns(sum, [](float a, float b) { return a + b; });
  if (!writer) return;
  gauges.shrink[column] = shrink;
  gauges.norm[column] = norm;
  next[column].m = r + in.decay * static_cast<float>(count);
  next[column].c = c;
  if (r > before.m) {
    const int row = kReverse ? in.window.end - 1 : in.window.begin;
    const float start = KeyExponent<kReverse>(in, row, column);
    // NaN does not grow; nor does one row, or a walk would never end.
    *grows |= count > 1 && r - fmaxf(before.m, start) > kMaxGrowth;
  }
}

/// How many rows of the window, in scan order, a column whose gauge is m does not grow too much in.
template <bool kReverse>
__device__ int RowsInRange(const KeyRows& in, int column, float m) {
  const Window& window = in.window;
  const int count = window.end - window.begin;
  float start = 0.0f;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float x =
        KeyExponent<kReverse>(in, kReverse ? window.end - 1 - i : window.begin + i, column);
    if (i == 0) start = fmaxf(m, x);
    // A little earlier than the guard, whatever the rounding: the next window passes it.
    if (i > 0 && x - start > kMaxGrowth - 1.0f) return i;
  }
  return count;
}

/// The longest window from where `in.window` starts (in scan order) that does not grow too much.
/// Slow: one thread walks one column.
template <bool kReverse, int kPanels>
__device__ Window ShrinkWindow(const KeyRows& in, const OwnFeature* own, int* shared_rows) {
  const Window window = in.window;
  const int count = window.end - window.begin;
  if (threadIdx.x == 0) *shared_rows = count;
  GroupBarrier<1>(kWeigherBarrier);
  for (int column = OwnColumn(); column < 64 * kPanels; column += 64) {
    const int rows = RowsInRange<kReverse>(in, column, own[column].m);
    if (rows < count) atomicMin(shared_rows, rows);
  }
  GroupBarrier<1>(kWeigherBarrier);
  const int rows = *shared_rows;
  GroupBarrier<1>(kWeigherBarrier);
  return kReverse ? Window{window.end - rows, window.end}
                  : Window{window.begin, window.begin + rows};
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
