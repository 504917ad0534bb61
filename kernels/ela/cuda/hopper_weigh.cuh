// How tiles of keys and queries become weights: bf16 powers of 2 of what exceeds a gauge.
//
// A gauge is a number that exponents are taken against, and drops out of every result; it has to
// keep weights in range, not to be the largest exponent. So a tile is weighed at the gauge that
// there is, the weights say whether that was in range, and only where it was not, exponents are
// searched for a new one.
#pragma once

#include "kernels/ela/cuda/hopper_scan.cuh"

namespace ela::kernels::cuda::hopper {

// Named barriers: of a scan's keepers, and of other warpgroups, from there on.
inline constexpr int kKeepersBarrier = 1, kOthersBarrier = 2;

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
          const float2 q = Unpack(Saturate2(pair));
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

/// Weights 2^(x log2(e) + gauge + exponent of the row) of what reads a state, as A fragments.
template <int kPanels>
__device__ void WeighReaders(uint32_t tile, const float* gauge, const float (&exponent)[2],
                             int warp, uint32_t (&b)[4 * kPanels][4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int s = 0; s < 4 * kPanels; ++s) {
    LoadFragment(b[s], tile, warp, s);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 n = *reinterpret_cast<const float2*>(gauge + 16 * s + 8 * half + 2 * t);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 k = Unpack(Saturate2(b[s][2 * half + i]));
        b[s][2 * half + i] = Pack(Exp2(fmaf(k.x, kLog2E, n.x) + exponent[i]),
                                  Exp2(fmaf(k.y, kLog2E, n.y) + exponent[i]));
      }
    }
  }
}

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

/// A normaliser as two rows of an operand of products.
__device__ inline void StoreHalves(unsigned char* halves, int column, float c) {
  const auto upper = __float2bfloat16_rn(c);
  unsigned char* at = halves + column / 64 * kNarrowBytes + column % 8 * 2;
  const int chunk = column % 64 / 8;
  *reinterpret_cast<__nv_bfloat16*>(at + chunk * 16) = upper;
  *reinterpret_cast<__nv_bfloat16*>(at + 128 + (chunk ^ 1) * 16) =
      __float2bfloat16_rn(c - __bfloat162float(upper));
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

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
