// out_c = sum_f a_f S'_fc over a stream of (key, value) rows: the forward pass, dv, states.
//
// Block: an item, a head, 32 columns of the values; a warp holds 32 features of its columns' state
// in registers. Tiles of 8 rows: threads that own a feature run its gauge over the rows; a warp
// per row turns exponents into weights; all warps update and read the state; the warps' parts are
// added in a fixed order. A row's own key enters its output apart from the state, so that a
// polynomial kernel's smallest weight, eps, survives.
#include "kernels/ela/cuda/features.cuh"
#include "kernels/ela/cuda/portable.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kTile = 8;
constexpr int kRows = 32;  // features a warp holds

struct Shared {
  float* w;     // [kTile][threads] weight of the key
  float* r;     // [kTile][threads] what the state shrinks by before the key enters
  float* a;     // [kTile][threads] exponent, then weight, of the query
  float* c;     // [kTile][threads] normaliser before the key enters, in the gauge after it
  float* y;     // [warps][kTile][32]
  float* v;     // [kTile][32]
  float* norm;  // [2][kTile] |k|^2, |q|^2
  float* own;   // [kTile] weight of the row's own key
  float* inv;   // [kTile] 1 / normaliser

  __device__ explicit Shared(float* memory) {
    const int threads = static_cast<int>(blockDim.x);
    w = memory;
    r = w + kTile * threads;
    a = r + kTile * threads;
    c = a + kTile * threads;
    y = c + kTile * threads;
    v = y + kTile * threads;
    norm = v + kTile * 32;
    own = norm + 2 * kTile;
    inv = own + kTile;
  }
};

size_t SharedBytes(int threads) {
  return sizeof(float) * static_cast<size_t>(5 * kTile * threads + kTile * 32 + 4 * kTile);
}

/// The state a block holds: a thread's feature (m, c) and its part of S.
struct State {
  float m = kEmptyMax, c = 0.0f;
  float s[kRows];
};

__device__ void LoadState(const ScanArgs& p, const float* state, int column, State* own) {
  const StateLayout& l = p.layout;
  const int f = static_cast<int>(threadIdx.x), warp = f / 32;
  own->m = kEmptyMax;
  own->c = 0.0f;
  if (state != nullptr && f < l.features) {
    if (p.kernel == FeatureMap::kHadamardExp) own->m = state[l.m + f];
    own->c = state[l.c + f];
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = warp * kRows + i;
    const bool live = state != nullptr && row < l.features && column < l.values;
    own->s[i] = live ? state[row * l.values + column] : 0.0f;
  }
}

__device__ void StoreState(const ScanArgs& p, float* state, int column, float shift,
                           const State& own) {
  const StateLayout& l = p.layout;
  const int f = static_cast<int>(threadIdx.x), warp = f / 32;
  if (blockIdx.z == 0 && f == 0) state[l.shift] = shift;
  if (blockIdx.z == 0 && f < l.features) {
    if (p.kernel == FeatureMap::kHadamardExp) state[l.m + f] = own.m;
    state[l.c + f] = own.c;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = warp * kRows + i;
    if (row < l.features && column < l.values) state[row * l.values + column] = own.s[i];
  }
}

template <class T>
struct Tile {
  const ScanArgs& p;
  int64_t first;  // scanned first; the rows go up, or down if reversed
  int count;
  int head;

  __device__ int64_t Row(int t) const { return p.reverse ? first - t : first + t; }
  __device__ const T* At(const RowsView& rows, int t, int width) const {
    return static_cast<const T*>(rows.data) + Row(t) * rows.stride + head * width;
  }
  __device__ float Lse(const FeatureRows& rows, int t) const {
    return rows.lse == nullptr ? 0.0f : rows.lse[Row(t) * p.heads + head];
  }
  __device__ float Extra(const float* extra, int t) const {
    return extra == nullptr ? 1.0f : extra[Row(t) * p.heads + head];
  }
};

/// Thread f runs its feature over the tile's rows: w, r, a (exponents for hadamard_exp), c.
template <class T, ScanMode kMode>
__device__ void RunFeature(const Tile<T>& tile, const Shared& sh, float log_decay, State* own) {
  const ScanArgs& p = tile.p;
  const int f = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bool exp_kernel = p.kernel == FeatureMap::kHadamardExp;
  const bool live = f < p.layout.features;
  const float decay = expf(log_decay);
  for (int t = 0; t < tile.count; ++t) {
    float w = 0.0f, r = 1.0f, a = exp_kernel ? -INFINITY : 0.0f, c = 0.0f;
    if (live) {
      if (kMode != ScanMode::kRead) {
        const float x = f < p.dim ? Saturate(ToFloat(tile.At(p.keys.x, t, p.dim)[f])) : 0.0f;
        const float lse = tile.Lse(p.keys, t);
        if (exp_kernel) {
          const float key = x - lse, shifted = own->m + log_decay;
          const float m = fmaxf(shifted, key);
          r = expf(shifted - m);
          w = expf(key - m);
          own->m = m;
        } else {
          r = decay;
          w = PolynomialFeature(p.kernel, p.keys.phi, f, p.dim, x, sh.norm[t]) * expf(-lse);
        }
      }
      c = own->c * r;
      own->c = fmaf(w, tile.Extra(p.value_extra, t), c);
      if (kMode != ScanMode::kStates) {
        const float x = f < p.dim ? Saturate(ToFloat(tile.At(p.queries.x, t, p.dim)[f])) : 0.0f;
        const float lse = tile.Lse(p.queries, t);
        a = exp_kernel
                ? x - lse + own->m
                : PolynomialFeature(p.kernel, p.queries.phi, f, p.dim, x, sh.norm[kTile + t]) *
                      expf(-lse);
      }
    }
    sh.w[t * threads + f] = w;
    sh.r[t * threads + f] = r;
    sh.a[t * threads + f] = a;
    sh.c[t * threads + f] = c;
  }
}

/// A warp per row: weights of the query, the weight of the row's own key, the normaliser.
template <class T, ScanMode kMode>
__device__ void WeighRows(const Tile<T>& tile, const Shared& sh) {
  const ScanArgs& p = tile.p;
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const bool exp_kernel = p.kernel == FeatureMap::kHadamardExp;
  for (int t = warp; t < tile.count; t += warps) {
    float* a = sh.a + t * threads;
    const float *w = sh.w + t * threads, *c = sh.c + t * threads;
    float s = 0.0f;
    if (exp_kernel && p.lse_out != nullptr) {
      s = -INFINITY;
      for (int f = lane; f < threads; f += 32) s = fmaxf(s, a[f]);
      s = WarpMax(s);
    }
    float den = 0.0f, own = 0.0f, count = 0.0f;
    for (int f = lane; f < threads; f += 32) {
      const float weight = exp_kernel ? expf(a[f] - s) : a[f];
      a[f] = weight;
      den = fmaf(weight, c[f], den);
      own = fmaf(weight, w[f], own);
      if (f == p.dim) count = c[f];
    }
    den = WarpSum(den);
    own = WarpSum(own);
    if (!exp_kernel && kMode == ScanMode::kScan && p.lse_out != nullptr) {
      own = WarpKernel(p.kernel, tile.At(p.queries.x, t, p.dim), tile.At(p.keys.x, t, p.dim), p.dim,
                       sh.norm[kTile + t], sh.norm[t]);
    }
    // No weight is below eps: what rounding took below that is put back.
    if (!exp_kernel) den = fmaxf(den, kKernelEps * WarpSum(count));
    den += own;
    if (lane == 0) {
      sh.own[t] = own;
      sh.inv[t] = p.lse_out == nullptr ? 1.0f : 1.0f / den;
      if (p.lse_out != nullptr && blockIdx.z == 0) {
        p.lse_out[tile.Row(t) * p.heads + tile.head] = s + logf(den);
      }
    }
  }
}

/// Every warp takes the tile's rows into its part of S and reads its part of the output.
template <ScanMode kMode>
__device__ void UpdateAndRead(const Shared& sh, int count, State* own) {
  const int threads = static_cast<int>(blockDim.x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int t = 0; t < count; ++t) {
    const float4* w = reinterpret_cast<const float4*>(sh.w + t * threads + warp * kRows);
    const float4* r = reinterpret_cast<const float4*>(sh.r + t * threads + warp * kRows);
    const float4* a = reinterpret_cast<const float4*>(sh.a + t * threads + warp * kRows);
    const float v = sh.v[t * 32 + lane];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
      const float4 wi = w[i], ri = r[i], ai = a[i];
      float* s = own->s + 4 * i;
      const float weight[4] = {wi.x, wi.y, wi.z, wi.w}, shrink[4] = {ri.x, ri.y, ri.z, ri.w};
      const float query[4] = {ai.x, ai.y, ai.z, ai.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (kMode != ScanMode::kRead) s[j] *= shrink[j];
        if (kMode != ScanMode::kStates) sum = fmaf(query[j], s[j], sum);
        if (kMode != ScanMode::kRead) s[j] = fmaf(weight[j], v, s[j]);
      }
    }
    if (kMode != ScanMode::kStates) sh.y[(warp * kTile + t) * 32 + lane] = sum;
  }
}

template <class T>
__device__ void WriteRows(const Tile<T>& tile, const Shared& sh, int column0) {
  const ScanArgs& p = tile.p;
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32;
  for (int i = static_cast<int>(threadIdx.x); i < tile.count * 32; i += threads) {
    const int t = i / 32, lane = i % 32;
    if (column0 + lane >= p.layout.values) continue;
    float sum = sh.own[t] * sh.v[t * 32 + lane];
    for (int warp = 0; warp < warps; ++warp) sum += sh.y[(warp * kTile + t) * 32 + lane];
    T* out = static_cast<T*>(p.out.data) + tile.Row(t) * p.out.stride + tile.head * p.layout.values;
    Store(out + column0 + lane, sum * sh.inv[t]);
  }
}

/// Values and norms of a tile's rows into shared memory.
template <class T, ScanMode kMode>
__device__ void LoadTile(const Tile<T>& tile, const Shared& sh, int column0) {
  const ScanArgs& p = tile.p;
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32;
  for (int i = static_cast<int>(threadIdx.x); i < tile.count * 32; i += threads) {
    const int column = column0 + i % 32;
    const bool live = kMode != ScanMode::kRead && column < p.layout.values;
    sh.v[i] = live ? ToFloat(tile.At(p.values, i / 32, p.layout.values)[column]) : 0.0f;
  }
  if (p.kernel == FeatureMap::kHadamardExp) return;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < 2 * tile.count; i += warps) {
    const int t = i / 2;
    const bool query = i % 2 != 0;
    if (query ? kMode == ScanMode::kStates : kMode == ScanMode::kRead) continue;
    const float norm = WarpNorm2(tile.At(query ? p.queries.x : p.keys.x, t, p.dim), p.dim);
    if (threadIdx.x % 32 == 0) sh.norm[(query ? kTile : 0) + t] = norm;
  }
}

template <class T, ScanMode kMode>
__global__ void RowScan(const __grid_constant__ ScanArgs p) {
  extern __shared__ float4 memory[];
  const Shared sh(reinterpret_cast<float*>(memory));
  const DeviceItem item = p.plan.items[blockIdx.x];
  if (kMode == ScanMode::kStates && item.slot < 0) return;
  const int head = p.first_head + static_cast<int>(blockIdx.y);
  const int column0 = static_cast<int>(blockIdx.z) * 32;
  const int column = column0 + static_cast<int>(threadIdx.x) % 32;
  const auto slot = [&](int s) {
    return p.states + (static_cast<int64_t>(s) * p.heads + head) * p.layout.size;
  };
  State state;
  // Spans of the item in scan order. A segment is one span cut to the item.
  for (int64_t done = 0; done < item.end - item.begin;) {
    int span = item.span;
    const int64_t at = p.reverse ? item.end - 1 - done : item.begin + done;
    while (p.plan.span_begin[span + 1] <= at) ++span;
    const int64_t left = p.reverse ? at - max(p.plan.span_begin[span], item.begin) + 1
                                   : min(p.plan.span_begin[span + 1], item.end) - at;
    const SpanEdges edges = p.plan.edges[span];
    const int edge = p.reverse ? edges.last : edges.first;
    const float* start = nullptr;
    if (kMode == ScanMode::kRead) {
      start = slot(item.first_slot);
    } else if (kMode == ScanMode::kScan && item.slot >= 0) {
      start = slot(item.slot);
    } else if (kMode == ScanMode::kScan && p.edge_states != nullptr && edge >= 0) {
      start = p.edge_states + (static_cast<int64_t>(edge) * p.heads + head) * p.layout.size;
    }
    LoadState(p, start, column, &state);
    for (int64_t i = 0; i < left; i += kTile) {
      const Tile<T> tile{p, p.reverse ? at - i : at + i,
                         static_cast<int>(min(static_cast<int64_t>(kTile), left - i)), head};
      LoadTile<T, kMode>(tile, sh, column0);
      __syncthreads();
      RunFeature<T, kMode>(tile, sh, p.plan.log_decay[head], &state);
      __syncthreads();
      if (kMode != ScanMode::kStates) {
        WeighRows<T, kMode>(tile, sh);
        __syncthreads();
      }
      UpdateAndRead<kMode>(sh, tile.count, &state);
      __syncthreads();
      if (kMode != ScanMode::kStates) {
        WriteRows(tile, sh, column0);
        __syncthreads();
      }
    }
    done += left;
  }
  if (kMode == ScanMode::kStates) {
    const float shift = p.plan.log_decay[head] * static_cast<float>(item.end - item.begin);
    StoreState(p, slot(item.slot), column, shift, state);
  }
}

template <class T>
void Launch(const Context& ctx, ScanMode mode, const ScanArgs& p) {
  const int threads = (p.layout.features + 31) / 32 * 32;
  const dim3 grid(static_cast<unsigned>(p.plan.num_items), static_cast<unsigned>(p.num_heads),
                  static_cast<unsigned>((p.layout.values + 31) / 32));
  const auto block = static_cast<unsigned>(threads);
  switch (mode) {
    case ScanMode::kStates:
      RowScan<T, ScanMode::kStates><<<grid, block, SharedBytes(threads), StreamOf(ctx)>>>(p);
      break;
    case ScanMode::kScan:
      RowScan<T, ScanMode::kScan><<<grid, block, SharedBytes(threads), StreamOf(ctx)>>>(p);
      break;
    case ScanMode::kRead:
      RowScan<T, ScanMode::kRead><<<grid, block, SharedBytes(threads), StreamOf(ctx)>>>(p);
      break;
  }
  CheckLaunch("RowScan");
}

}  // namespace

void LaunchRowScan(const Context& ctx, DType dtype, ScanMode mode, const ScanArgs& args) {
  if (args.plan.num_items == 0 || args.num_heads == 0) return;
  if (dtype == DType::kBf16) {
    Launch<__nv_bfloat16>(ctx, mode, args);
  } else {
    Launch<float>(ctx, mode, args);
  }
}

}  // namespace ela::kernels::cuda
