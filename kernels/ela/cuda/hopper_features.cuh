// 64 features of a state, kept by a warpgroup in registers: their rows of S, gauges, normalisers,
// and the weights of their keys.
//
// Keys lie in tiles as rows of tokens; they are loaded transposed, so that a thread has 16 tokens
// of only two features, whose gauges it keeps itself, and weights are the operand A of the state's
// update without a way through shared memory.
#pragma once

#include <type_traits>

#include "kernels/ela/cuda/hopper_block.cuh"

namespace ela::kernels::cuda::hopper {

#ifdef ELA_HOPPER_CODE

// Where decay alone raises a gauge, in its frame, by more than the first and less than the second
// within a step, the gauge is expected to rise with it.
inline constexpr float kLeastAdvance = 0.0f, kMostAdvance = 40.0f;
// Below that a normaliser, or of gradients the largest weight, says that such a gauge has run ahead
// of the keys.
inline constexpr float kLeastNormaliser = 0x1p-20f;
inline constexpr uint32_t kLeastReach = 0x35803580u;  // two of 2^-20

/// Shifts of the tokens of a tile, base 2, and their parts in the normaliser: none, 1. Of tokens
/// 16 s + 8 half + 2 t and the next, in a quad's thread t.
struct FlatRows {
  static constexpr bool kShifts = false, kWeighs = false;
  __device__ FlatRows(float, float) {}
  __device__ float2 Shift(int, int) const { return {0.0f, 0.0f}; }
  __device__ float2 Extra(int, int) const { return {1.0f, 1.0f}; }
};
/// Linear in the token.
struct DecayedRows : FlatRows {
  static constexpr bool kShifts = true;
  float own, slope;  // of token 2 t
  __device__ DecayedRows(float first, float each)
      : FlatRows(first, each),
        own(fmaf(each, static_cast<float>(threadIdx.x % 4u * 2u), first)),
        slope(each) {}
  __device__ float2 Shift(int s, int half) const {
    const float x = fmaf(slope, static_cast<float>(16 * s + 8 * half), own);
    return {x, x + slope};
  }
};
template <bool kFlat>
using RowsOf = std::conditional_t<kFlat, FlatRows, DecayedRows>;
/// Of queries: less lse.
template <bool kFlat>
struct ShiftedRows : RowsOf<kFlat> {
  static constexpr bool kShifts = true;
  const float2* lse;  // of token 2 t
  __device__ ShiftedRows(const float* l, float first, float each)
      : RowsOf<kFlat>(first, each), lse(reinterpret_cast<const float2*>(l) + threadIdx.x % 4u) {}
  __device__ float2 Shift(int s, int half) const {
    const float2 x = RowsOf<kFlat>::Shift(s, half), l = lse[8 * s + 4 * half];
    return {fmaf(-kLog2E, l.x, x.x), fmaf(-kLog2E, l.y, x.y)};
  }
};
/// Of queries as keys: parts of -delta in the normaliser.
template <bool kFlat>
struct GradientRows : ShiftedRows<kFlat> {
  static constexpr bool kWeighs = true;
  const float2* minus_delta;  // of token 2 t
  __device__ GradientRows(const float* l, const float* d, float first, float each)
      : ShiftedRows<kFlat>(l, first, each),
        minus_delta(reinterpret_cast<const float2*>(d) + threadIdx.x % 4u) {}
  __device__ float2 Extra(int s, int half) const { return minus_delta[8 * s + 4 * half]; }
};

/// Keys of a tile, then their weights, as fragments of an operand A whose rows are features.
struct Keys {
  uint32_t a[4][4];

  /// Tokens of a[s][2 half + i]: this one and the next.
  static __device__ int Token(int s, int half) {
    return 16 * s + 8 * half + static_cast<int>(threadIdx.x % 4u * 2u);
  }

  /// Tokens outside the window as keys of weight zero; the others saturated where asked for.
  __device__ void Load(uint32_t panel, int warp, const Window& window, bool saturate) {
#pragma unroll
    for (int s = 0; s < 4; ++s) LoadTransposed(a[s], panel, warp, s);
    if (saturate) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[s][i] = Saturate2(a[s][i]);
      }
    }
    if (window.begin == 0 && window.end == kTileRows) return;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = Token(s, half);
        const uint32_t live =
            (window.Holds(token) ? 0xffffu : 0u) | (window.Holds(token + 1) ? 0xffff0000u : 0u);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& pair = a[s][2 * half + i];
          pair = (pair & live) | (kNoKeys & ~live);
        }
      }
    }
  }

  /// The largest exponents of the thread's two features.
  template <class Rows>
  __device__ void Largest(const Rows& rows, float (&top)[2]) const {
    top[0] = top[1] = kEmptyMax;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 shift = rows.Shift(s, half);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 key = Unpack(a[s][2 * half + i]);
          top[i] = fmaxf(top[i], fmaxf(fmaf(key.x, kLog2E, shift.x), fmaf(key.y, kLog2E, shift.y)));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 2));
    }
  }

  /// Keys become weights at the gauges r; returns whether they are in range. sum: this thread's
  /// part of what the normalisers gain, before rounding: over a chunk or more, errors of rounding
  /// average out.
  template <class Rows>
  __device__ bool Weigh(const Rows& rows, const float (&r)[2], float (&sum)[2]) {
    uint32_t most = 0;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 shift, extra;
        if constexpr (Rows::kShifts) shift = rows.Shift(s, half);
        if constexpr (Rows::kWeighs) extra = rows.Extra(s, half);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& pair = a[s][2 * half + i];
          const float2 key = Unpack(pair);
          float x = Rows::kShifts ? shift.x - r[i] : -r[i], y = Rows::kShifts ? shift.y - r[i] : x;
          x = Exp2(fmaf(key.x, kLog2E, x)), y = Exp2(fmaf(key.y, kLog2E, y));
          pair = Pack(x, y);
          most = Max2(most, pair);
          sum[i] += Rows::kWeighs ? fmaf(x, extra.x, y * extra.y) : x + y;
        }
      }
    }
    return Max2(most, kMostOfKeys) == kMostOfKeys;
  }

  /// Whether each of the thread's two features has a weight of kLeastReach or more.
  __device__ bool Reach() const {
    uint32_t most[2] = {a[0][0], a[0][1]};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) most[i % 2] = Max2(most[i % 2], a[s][i]);
    }
    // Both features' largest in one pair.
    uint32_t both =
        Max2(__byte_perm(most[0], most[1], 0x5410), __byte_perm(most[0], most[1], 0x7632));
    both = Max2(both, __shfl_xor_sync(0xffffffffu, both, 1));
    both = Max2(both, __shfl_xor_sync(0xffffffffu, both, 2));
    return Max2(both, kLeastReach) == both;
  }

  /// Weights into a tile of tokens.
  __device__ void Store(uint32_t panel, int warp) const {
#pragma unroll
    for (int s = 0; s < 4; ++s) StoreTransposed(panel, warp, s, a[s]);
  }
};

template <int kPanels>
struct Features {
  float m[2], c[2];      // gauges and normalisers of features `row` and `row + 8` of the 64
  float s[kPanels][32];  // rows of S: columns 64 i ..

  /// From a state (null: of nothing).
  __device__ void Load(const float* state, const StateLayout& l, int first, const Place& at) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const OwnFeature own = LoadFeature(state, l, first + at.row + 8 * i);
      m[i] = own.m, c[i] = own.c;
    }
#pragma unroll
    for (int i = 0; i < kPanels; ++i) LoadStateTile(state, l, first, 64 * i, at.warp, s[i]);
  }

  __device__ void Store(float* state, const StateLayout& l, int first, const Place& at) const {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) StoreStateTile(state, l, first, 64 * i, at.warp, s[i]);
    if (at.t != 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      state[l.m + first + at.row + 8 * i] = m[i] <= kEmptyMax ? kEmptyMax : m[i] * kLn2;
      state[l.c + first + at.row + 8 * i] = c[i];
    }
  }

  /// Brings the state into gauges r.
  __device__ void Rise(const float (&r)[2]) {
    const float low = Exp2(m[0] - r[0]), high = Exp2(m[1] - r[1]);
#pragma unroll
    for (int i = 0; i < kPanels; ++i) ScaleRows(low, high, s[i]);
    c[0] *= low, c[1] *= high;
    m[0] = r[0], m[1] = r[1];
  }

  /// Past a window: its sums in the normalisers, its decay in the gauges.
  template <bool kFlat>
  __device__ void Pass(const float (&sum)[2], float decay, const Window& window) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      c[i] += sum[i];
      if (!kFlat) m[i] += decay * static_cast<float>(window.end - window.begin);
    }
  }

  /// Adds a chunk of weights and values (panels), of which StartUpdate has started the first panel.
  __device__ void Add(const Keys& keys, uint32_t values, float (&u)[32]) {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      WgmmaWait<0>();
      AddPanel(s[i], u);
      if (i + 1 == kPanels) break;
      StartUpdate(keys, values + static_cast<uint32_t>((i + 1) * kPanelBytes), u);
    }
  }
  static __device__ void StartUpdate(const Keys& keys, uint32_t values, float (&u)[32]) {
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaRegisters<true>(u, keys.a[k], MnMajor(values, k), k > 0);
    WgmmaCommit();
  }
};

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
