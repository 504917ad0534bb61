// What the gradient scans and the bidirectional gradient read-outs share.
#pragma once

#include "kernels/ela/cuda/hopper_block.cuh"
#include "kernels/ela/cuda/hopper_launch.h"

namespace ela::kernels::cuda::hopper {

#ifdef ELA_HOPPER_CODE

/// 64 features of the state a span starts from.
template <int kPanels>
__device__ void LoadFeatures(const float* start, const StateLayout& l, int feature, const Place& at,
                             float (&s)[kPanels][32]) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) LoadStateTile(start, l, feature, 64 * i, at.warp, s[i]);
}

/// Brings 64 features of the state into a step's gauge (null: they are), and copies them to panels
/// `pitch` apart.
template <int kPanels>
__device__ void ShrinkAndCopy(const float* shrink, uint32_t copy, uint32_t pitch, const Place& at,
                              float (&s)[kPanels][32]) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    if (shrink != nullptr) ScaleRows(shrink[at.row], shrink[at.row + 8], s[i]);
    StorePanel(copy + static_cast<uint32_t>(i) * pitch, at.warp, s[i]);
  }
  FenceProxy();
}

/// -lse (base 2) of a thread's two rows, plus their decay; 0 outside the window.
__device__ inline void QueryExponents(const BackwardArgs& p, const Place& at, int head,
                                      int64_t row0, const Window& window, float decay,
                                      float (&exponent)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.row + 8 * i;
    exponent[i] = 0.0f;
    if (!window.Holds(row)) continue;
    exponent[i] =
        decay * window.Step<false>(row) - p.lse[(row0 + row) * p.walk.heads + head] * kLog2E;
  }
}

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

/// g and h (weights seen within the chunk), of 64 features, become dq in g; also stores -delta.
/// fragment(s, e): the readers' weights e of step s, rounded: delta is divided by what their
/// weights of keys add up to, nearly 1. The warpgroups of all features add up both in `sums` [2
/// kPanels][64].
template <int kPanels, class Fragment>
__device__ void FinishQuery(const BackwardArgs& p, const Place& at, int head, int64_t row0,
                            const Window& window, int part, const float* norms, float* sums,
                            const Fragment& fragment, float (&g)[32], float (&h)[32]) {
  float delta[2] = {}, total[2] = {};
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    uint32_t e[4];
    fragment(s, e);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = 64 * part + 16 * s + 8 * half + 2 * at.t;
      const float2 norm = *reinterpret_cast<const float2*>(norms + column);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 weight = Unpack(e[2 * half + i]);
        float *gi = g + 8 * s + 4 * half + 2 * i, *hi = h + 8 * s + 4 * half + 2 * i;
        gi[0] *= weight.x;
        gi[1] *= weight.y;
        hi[0] = (hi[0] + norm.x) * weight.x;
        hi[1] = (hi[1] + norm.y) * weight.y;
        delta[i] += gi[0] + gi[1];
        total[i] += hi[0] + hi[1];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) delta[i] = QuadSum(delta[i]), total[i] = QuadSum(total[i]);
  if constexpr (kPanels > 1) {
    if (at.t == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<float2*>(sums + 2 * (part * kTileRows + at.row + 8 * i)) =
            make_float2(delta[i], total[i]);
      }
    }
    GroupBarrier<kPanels>(kCarriersBarrier);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2* at_row = reinterpret_cast<const float2*>(sums) + at.row + 8 * i;
      const float2 low = at_row[0], high = at_row[kTileRows];
      delta[i] = low.x + high.x, total[i] = low.y + high.y;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) delta[i] /= total[i];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.row + 8 * i;
    if (part == 0 && at.t == 0 && window.Holds(row)) {
      p.minus_delta[(row0 + row) * p.walk.heads + head] = -delta[i];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      g[4 * j + 2 * i] -= delta[i] * h[4 * j + 2 * i];
      g[4 * j + 2 * i + 1] -= delta[i] * h[4 * j + 2 * i + 1];
    }
  }
}

/// dk = b (g + t) for 64 features from `feature`; b are the readers' weights in a tile.
__device__ inline void FinishKeys(const Place& at, const float* norm, uint32_t readers, int feature,
                                  float (&g)[32]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int column = feature + 8 * j + 2 * at.t;
    const float2 t = *reinterpret_cast<const float2*>(norm + column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 weight = Unpack(LoadShared(
          readers + static_cast<uint32_t>(ChunkOffset(at.row + 8 * i, column / 8) + 4 * at.t)));
      float* gi = g + 4 * j + 2 * i;
      gi[0] = weight.x * (gi[0] + t.x);
      gi[1] = weight.y * (gi[1] + t.y);
    }
  }
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
