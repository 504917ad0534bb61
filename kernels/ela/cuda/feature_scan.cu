// out_f = a_f sum_c S'_fc p_c over a stream of (key, [value, extra]) and probe rows: dq and dk.
//
// Block: an item, a head, 32 features; a lane is a feature, a warp holds 32 columns of its
// features' state in registers and runs their gauge for itself. Tiles of 8 rows; the warps' parts
// are added in a fixed order. hadamard_exp writes the gradient, the polynomial kernels the gradient
// of the feature, from which LaunchFeatureGradient makes that of the row.
#include "kernels/ela/cuda/features.cuh"
#include "kernels/ela/cuda/portable.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kTile = 8;
constexpr int kColumns = 32;  // columns a warp holds
constexpr int kMaxWarps = 8;

struct Shared {
  float v[kTile][kMaxWarps * kColumns];
  float p[kTile][kMaxWarps * kColumns];
  float part[kMaxWarps][kTile][32];
  float a[kTile][32];    // weight of the query
  float own[kTile][32];  // the normaliser's column times its probe
  float norm[kTile];
};
static_assert(sizeof(Shared) <= 48 * 1024);

struct State {
  float m = kEmptyMax, c = 0.0f;
  float s[kColumns];
};

template <class T>
struct Rows {
  const ScanArgs& p;
  int64_t first;
  int count;
  int head;

  __device__ int64_t Row(int t) const { return p.reverse ? first - t : first + t; }
  __device__ const T* At(const RowsView& rows, int t, int width) const {
    return static_cast<const T*>(rows.data) + Row(t) * rows.stride + head * width;
  }
  __device__ float PerHead(const float* x, int t, float absent) const {
    return x == nullptr ? absent : x[Row(t) * p.heads + head];
  }
};

__device__ void LoadState(const ScanArgs& p, const float* state, int f, State* own) {
  const StateLayout& l = p.layout;
  const int column0 = static_cast<int>(threadIdx.x) / 32 * kColumns;
  const bool live = state != nullptr && f < l.features;
  own->m = live && p.kernel == FeatureMap::kHadamardExp ? state[l.m + f] : kEmptyMax;
  own->c = live ? state[l.c + f] : 0.0f;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    own->s[i] = live && column0 + i < l.values ? state[f * l.values + column0 + i] : 0.0f;
  }
}

template <class T, ScanMode kMode>
__device__ void LoadTile(const Rows<T>& rows, Shared* sh) {
  const ScanArgs& p = rows.p;
  const int threads = static_cast<int>(blockDim.x);  // columns, rounded up to whole warps
  const int column = static_cast<int>(threadIdx.x), warp = column / 32, warps = threads / 32;
  const int width = p.layout.values;
  for (int t = 0; t < rows.count; ++t) {
    const bool live = column < width;
    sh->v[t][column] =
        live && kMode != ScanMode::kRead ? ToFloat(rows.At(p.values, t, width)[column]) : 0.0f;
    sh->p[t][column] = live ? ToFloat(rows.At(p.probes, t, width)[column]) : 0.0f;
  }
  if (p.kernel == FeatureMap::kHadamardExp || kMode == ScanMode::kRead) return;
  for (int t = warp; t < rows.count; t += warps) {
    const float norm = WarpNorm2(rows.At(p.keys.x, t, p.dim), p.dim);
    if (threadIdx.x % 32 == 0) sh->norm[t] = norm;
  }
}

/// Takes one row into the state and returns this warp's part of S p.
template <class T, ScanMode kMode>
__device__ float Step(const Rows<T>& rows, Shared* sh, int t, int f, float log_decay, State* own) {
  const ScanArgs& p = rows.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool exp_kernel = p.kernel == FeatureMap::kHadamardExp;
  const bool has_x = f < p.dim;
  float w = 0.0f, r = 1.0f;
  if (kMode != ScanMode::kRead && f < p.layout.features) {
    const float x = has_x ? Saturate(ToFloat(rows.At(p.keys.x, t, p.dim)[f])) : 0.0f;
    const float lse = rows.PerHead(p.keys.lse, t, 0.0f);
    if (exp_kernel) {
      const float key = x - lse, shifted = own->m + log_decay;
      own->m = fmaxf(shifted, key);
      r = expf(shifted - own->m);
      w = expf(key - own->m);
    } else {
      r = expf(log_decay);
      w = PolynomialFeature(p.kernel, p.keys.phi, f, p.dim, x, sh->norm[t]) * expf(-lse);
    }
  }
  const float4* v = reinterpret_cast<const float4*>(&sh->v[t][warp * kColumns]);
  const float4* q = reinterpret_cast<const float4*>(&sh->p[t][warp * kColumns]);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kColumns / 4; ++i) {
    const float4 vi = v[i], qi = q[i];
    const float value[4] = {vi.x, vi.y, vi.z, vi.w}, probe[4] = {qi.x, qi.y, qi.z, qi.w};
    float* s = own->s + 4 * i;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (kMode != ScanMode::kRead) s[j] = fmaf(w, value[j], s[j] * r);
      sum = fmaf(probe[j], s[j], sum);
    }
  }
  if (kMode != ScanMode::kRead) {
    own->c = fmaf(w, rows.PerHead(p.value_extra, t, 1.0f), own->c * r);
  }
  if (warp == 0) {
    const float lse = rows.PerHead(p.queries.lse, t, 0.0f);
    float a = expf(-lse);
    if (exp_kernel) {
      const float x = has_x ? ToFloat(rows.At(p.queries.x, t, p.dim)[f]) : 0.0f;
      a = has_x ? expf(Saturate(x) - lse + own->m) : 0.0f;
    }
    sh->a[t][lane] = a;
    sh->own[t][lane] = own->c * rows.PerHead(p.probe_extra, t, 1.0f);
  }
  return sum;
}

template <class T>
__device__ void WriteTile(const Rows<T>& rows, const Shared& sh, int f0) {
  const ScanArgs& p = rows.p;
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32;
  for (int i = static_cast<int>(threadIdx.x); i < rows.count * 32; i += threads) {
    const int t = i / 32, lane = i % 32, f = f0 + lane;
    float sum = sh.own[t][lane];
    for (int warp = 0; warp < warps; ++warp) sum += sh.part[warp][t][lane];
    // A weight of zero wins over a sum that overflowed: what no row reaches has no gradient.
    const float out = sh.a[t][lane] == 0.0f ? 0.0f : sum * sh.a[t][lane];
    if (p.raw != nullptr) {
      const int64_t at = rows.Row(t) * p.num_heads + (rows.head - p.first_head);
      if (f < p.layout.features) p.raw[at * p.layout.features + f] = out;
    } else if (f < p.dim) {
      Store(static_cast<T*>(p.out.data) + rows.Row(t) * p.out.stride + rows.head * p.dim + f, out);
    }
  }
}

template <class T, ScanMode kMode>
__global__ void FeatureScan(const __grid_constant__ ScanArgs p) {
  __shared__ Shared sh;
  const DeviceItem item = p.plan.items[blockIdx.x];
  const int head = p.first_head + static_cast<int>(blockIdx.y);
  const int f0 = static_cast<int>(blockIdx.z) * 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto state_of = [&](const float* states, int i) {
    return states + (static_cast<int64_t>(i) * p.heads + head) * p.layout.size;
  };
  State state;
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
      start = state_of(p.states, item.first_slot);
    } else if (item.slot >= 0) {
      start = state_of(p.states, item.slot);
    } else if (p.edge_states != nullptr && edge >= 0) {
      start = state_of(p.edge_states, edge);
    }
    LoadState(p, start, f0 + lane, &state);
    for (int64_t i = 0; i < left; i += kTile) {
      const Rows<T> rows{p, p.reverse ? at - i : at + i,
                         static_cast<int>(min(static_cast<int64_t>(kTile), left - i)), head};
      LoadTile<T, kMode>(rows, &sh);
      __syncthreads();
      for (int t = 0; t < rows.count; ++t) {
        sh.part[warp][t][lane] =
            Step<T, kMode>(rows, &sh, t, f0 + lane, p.plan.log_decay[head], &state);
      }
      __syncthreads();
      WriteTile(rows, sh, f0);
      __syncthreads();
    }
    done += left;
  }
}

template <class T>
void Launch(const Context& ctx, ScanMode mode, const ScanArgs& p) {
  const dim3 grid(static_cast<unsigned>(p.plan.num_items), static_cast<unsigned>(p.num_heads),
                  static_cast<unsigned>((p.layout.features + 31) / 32));
  const auto block = static_cast<unsigned>((p.layout.values + 31) / 32 * 32);
  if (mode == ScanMode::kScan) {
    FeatureScan<T, ScanMode::kScan><<<grid, block, 0, StreamOf(ctx)>>>(p);
  } else {
    FeatureScan<T, ScanMode::kRead><<<grid, block, 0, StreamOf(ctx)>>>(p);
  }
  CheckLaunch("FeatureScan");
}

/// Warp per row and head: d x from d features.
template <class T>
__global__ void FeatureGradient(RowsView d, FeatureRows x, const float* raw, int64_t begin,
                                int64_t end, const __grid_constant__ ScanArgs p) {
  const int64_t warp =
      begin * p.num_heads + (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (warp >= end * p.num_heads) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = warp / p.num_heads;
  const int head = p.first_head + static_cast<int>(warp % p.num_heads);
  const float* g = raw + warp * p.layout.features;
  const T* in = static_cast<const T*>(x.x.data) + row * x.x.stride + head * p.dim;
  T* out = static_cast<T*>(d.data) + row * d.stride + head * p.dim;
  if (p.kernel != FeatureMap::kModulatedDot) {
    const float own = g[x.phi ? p.dim : p.dim + 1];  // of |x|^2
    const float factor = x.phi ? 1.0f : p.kernel == FeatureMap::kSumSquared ? 2.0f : -2.0f;
    for (int i = lane; i < p.dim; i += 32) {
      Store(out + i, factor * g[i] + 2.0f * Saturate(ToFloat(in[i])) * own);
    }
    return;
  }
  // (n^2 + 1) [x^, one], x^ = x / max(n, 1e-12).
  const float norm2 = WarpNorm2(in, p.dim), inverse = 1.0f / fmaxf(sqrtf(norm2), 1e-12f);
  float dot = 0.0f;
  for (int i = lane; i < p.dim; i += 32) dot = fmaf(g[i], Saturate(ToFloat(in[i])) * inverse, dot);
  dot = WarpSum(dot);
  const float one = x.phi ? 1.0f + kKernelEps : 1.0f;
  const float radial = 2.0f * (dot + g[p.dim] * one);
  const float along = sqrtf(norm2) > 1e-12f ? dot : 0.0f;
  for (int i = lane; i < p.dim; i += 32) {
    const float at = Saturate(ToFloat(in[i])), unit = at * inverse;
    Store(out + i, radial * at + (norm2 + 1.0f) * inverse * (g[i] - along * unit));
  }
}

template <class T>
__global__ void HeadDots(float* dots, float factor, RowsView a, RowsView b, int64_t rows, int heads,
                         int width) {
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (warp >= rows * heads) return;
  const int64_t row = warp / heads, head = warp % heads;
  const T* x = static_cast<const T*>(a.data) + row * a.stride + head * width;
  const T* y = static_cast<const T*>(b.data) + row * b.stride + head * width;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < width; i += 32) {
    sum = fmaf(ToFloat(x[i]), ToFloat(y[i]), sum);
  }
  sum = WarpSum(sum);
  if (threadIdx.x % 32 == 0) dots[warp] = factor * sum;
}

constexpr int kWarpsPerBlock = 8;

unsigned BlocksFor(int64_t warps) {
  return static_cast<unsigned>((warps + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

}  // namespace

void LaunchFeatureScan(const Context& ctx, DType dtype, ScanMode mode, const ScanArgs& args) {
  if (args.plan.num_items == 0 || args.num_heads == 0) return;
  if (dtype == DType::kBf16) {
    Launch<__nv_bfloat16>(ctx, mode, args);
  } else {
    Launch<float>(ctx, mode, args);
  }
}

void LaunchHeadDots(const Context& ctx, DType dtype, float* dots, float factor, RowsView a,
                    RowsView b, int64_t rows, int heads, int width) {
  if (rows == 0) return;
  const unsigned blocks = BlocksFor(rows * heads);
  if (dtype == DType::kBf16) {
    HeadDots<__nv_bfloat16>
        <<<blocks, 32 * kWarpsPerBlock, 0, StreamOf(ctx)>>>(dots, factor, a, b, rows, heads, width);
  } else {
    HeadDots<float>
        <<<blocks, 32 * kWarpsPerBlock, 0, StreamOf(ctx)>>>(dots, factor, a, b, rows, heads, width);
  }
  CheckLaunch("HeadDots");
}

void LaunchFeatureGradient(const Context& ctx, DType dtype, RowsView d, const FeatureRows& x,
                           const float* raw, int64_t begin, int64_t end, const ScanArgs& args) {
  if (begin == end) return;
  const unsigned blocks = BlocksFor((end - begin) * args.num_heads);
  if (dtype == DType::kBf16) {
    FeatureGradient<__nv_bfloat16>
        <<<blocks, 32 * kWarpsPerBlock, 0, StreamOf(ctx)>>>(d, x, raw, begin, end, args);
  } else {
    FeatureGradient<float>
        <<<blocks, 32 * kWarpsPerBlock, 0, StreamOf(ctx)>>>(d, x, raw, begin, end, args);
  }
  CheckLaunch("FeatureGradient");
}

}  // namespace ela::kernels::cuda
