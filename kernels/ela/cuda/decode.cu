// Decode: one token of each of B sequences enters its state and is read out. Block: a sequence and
// a head. Reads and writes the state once, 16 bytes a thread where its rows are aligned: nothing
// else of size moves.
#include "kernels/early_launch.cuh"
#include "kernels/ela/cuda/features.cuh"
#include "kernels/ela/cuda/portable.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxFeatures = 264;
constexpr int kBatch = 8;       // rows of a state that a thread loads at once
constexpr int kMaxGroups = 32;  // of threads that share a state's row

struct DecodeArgs {
  RowsView y, q, k, v;
  float* states;
  StateLayout layout;
  FeatureMap kernel;
  int heads, dim;
  HeadDecay decay;
};

struct Shared {
  float w[kMaxFeatures], r[kMaxFeatures], a[kMaxFeatures], c[kMaxFeatures];
  float norm[2], own, inv;
  float part[4 * kThreads];
};

/// Thread f: gauge, normaliser and weights of its features.
template <class T>
__device__ void RunFeatures(const DecodeArgs& p, const T* q, const T* k, float log_decay,
                            float* state, Shared* sh) {
  const StateLayout& l = p.layout;
  const bool exp_kernel = p.kernel == FeatureMap::kHadamardExp;
  for (int f = static_cast<int>(threadIdx.x); f < l.features; f += kThreads) {
    const float kf = f < p.dim ? Saturate(ToFloat(k[f])) : 0.0f;
    const float qf = f < p.dim ? Saturate(ToFloat(q[f])) : 0.0f;
    if (exp_kernel) {
      const float shifted = state[l.m + f] + log_decay;
      const float m = fmaxf(shifted, kf);
      state[l.m + f] = m;
      sh->r[f] = expf(shifted - m);
      sh->w[f] = expf(kf - m);
      sh->a[f] = qf + m;
    } else {
      sh->r[f] = expf(log_decay);
      sh->w[f] = PolynomialFeature(p.kernel, false, f, p.dim, kf, sh->norm[0]);
      sh->a[f] = PolynomialFeature(p.kernel, true, f, p.dim, qf, sh->norm[1]);
    }
    sh->c[f] = state[l.c + f] * sh->r[f];
    state[l.c + f] = sh->c[f] + sh->w[f];
  }
}

/// One warp: weights of the query, the normaliser.
template <class T>
__device__ void Weigh(const DecodeArgs& p, const T* q, const T* k, Shared* sh) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool exp_kernel = p.kernel == FeatureMap::kHadamardExp;
  float s = exp_kernel ? -INFINITY : 0.0f;
  if (exp_kernel) {
    for (int f = lane; f < p.layout.features; f += 32) s = fmaxf(s, sh->a[f]);
    s = WarpMax(s);
  }
  float den = 0.0f, own = 0.0f;
  for (int f = lane; f < p.layout.features; f += 32) {
    if (exp_kernel) sh->a[f] = expf(sh->a[f] - s);
    den = fmaf(sh->a[f], sh->c[f], den);
    own = fmaf(sh->a[f], sh->w[f], own);
  }
  den = WarpSum(den);
  own = WarpSum(own);
  if (!exp_kernel) {
    own = WarpKernel(p.kernel, q, k, p.dim, sh->norm[1], sh->norm[0]);
    den = fmaxf(den, kKernelEps * sh->c[p.dim]);
  }
  if (lane == 0) {
    sh->own = own;
    sh->inv = 1.0f / (den + own);
  }
}

/// Some rows of a state, kVector of their columns a thread.
template <int kVector>
struct RowBatch {
  float x[kBatch][kVector];

  __device__ void Load(const float* rows, int width, int first, int stride, int features) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int f = first + i * stride;
      if (f >= features) continue;
      if constexpr (kVector == 4) {
        const float4 loaded = *reinterpret_cast<const float4*>(rows + f * width);
        x[i][0] = loaded.x, x[i][1] = loaded.y, x[i][2] = loaded.z, x[i][3] = loaded.w;
      } else {
        x[i][0] = rows[f * width];
      }
    }
  }
  /// Reads the rows out into `sum`, then takes the token in.
  __device__ void Step(float* rows, int width, int first, int stride, int features,
                       const Shared& sh, const float (&value)[kVector], float (&sum)[kVector]) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int f = first + i * stride;
      if (f >= features) continue;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        x[i][j] *= sh.r[f];
        sum[j] = fmaf(sh.a[f], x[i][j], sum[j]);
        x[i][j] = fmaf(sh.w[f], value[j], x[i][j]);
      }
      if constexpr (kVector == 4) {
        *reinterpret_cast<float4*>(rows + f * width) =
            make_float4(x[i][0], x[i][1], x[i][2], x[i][3]);
      } else {
        rows[f * width] = x[i][0];
      }
    }
  }
};

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads, 4) Decode(const __grid_constant__ DecodeArgs p) {
  __shared__ Shared sh;
  LetNextStart();
  const int b = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const StateLayout& l = p.layout;
  const int width = l.values;
  float* state = p.states + (static_cast<int64_t>(b) * p.heads + head) * l.size;
  const auto row = [&](const RowsView& x, int n) {
    return static_cast<T*>(x.data) + static_cast<int64_t>(b) * x.stride + head * n;
  };
  const T *q = row(p.q, p.dim), *k = row(p.k, p.dim), *v = row(p.v, width);
  // Threads in groups of one row of the state; group g takes rows g, g + groups, ...
  const int columns = (width + kVector - 1) / kVector;
  const int groups = min(kThreads / columns, kMaxGroups);
  const int group = static_cast<int>(threadIdx.x) / columns;
  const int column = static_cast<int>(threadIdx.x) % columns * kVector;
  const int features = group < groups ? l.features : 0;
  float* own = state + column;
  RowBatch<kVector> batch;
  batch.Load(own, width, group, groups, features);  // on its way while the weights are computed
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (p.kernel != FeatureMap::kHadamardExp && warp < 2) {
    const float norm = WarpNorm2(warp == 0 ? k : q, p.dim);
    if (threadIdx.x % 32 == 0) sh.norm[warp] = norm;
  }
  __syncthreads();
  RunFeatures(p, q, k, p.decay[head], state, &sh);
  if (threadIdx.x == 0) state[l.shift] += p.decay[head];
  float sum[kVector] = {}, value[kVector] = {};
  for (int j = 0; j < kVector && column + j < width; ++j) value[j] = ToFloat(v[column + j]);
  __syncthreads();
  if (warp == 0) Weigh(p, q, k, &sh);
  __syncthreads();
  for (int f = group; f < features; f += kBatch * groups) {
    if (f > group) batch.Load(own, width, f, groups, features);
    batch.Step(own, width, f, groups, features, sh, value, sum);
  }
  for (int j = 0; j < kVector; ++j) sh.part[threadIdx.x * kVector + j] = sum[j];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
    float total = sh.own * ToFloat(v[c]);
    for (int g = 0; g < groups; ++g) total += sh.part[g * columns * kVector + c];
    Store(row(p.y, width) + c, total * sh.inv);
  }
}

template <class T>
void Launch(const Context& ctx, const DecodeArgs& p, int64_t count) {
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(p.heads));
  const bool aligned = p.layout.values % 4 == 0 && p.layout.size % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(p.states) % 16 == 0;
  if (aligned) {
    Decode<T, 4><<<grid, kThreads, 0, StreamOf(ctx)>>>(p);
  } else {
    Decode<T, 1><<<grid, kThreads, 0, StreamOf(ctx)>>>(p);
  }
  CheckLaunch("Decode");
}

}  // namespace

void LaunchDecode(const Context& ctx, DType dtype, const Tensor& y, float* states, const Tensor& q,
                  const Tensor& k, const Tensor& v, const ElaConfig& config) {
  if (q.dim(0) == 0) return;
  const ArenaScope scope(ctx.scratch);
  DecodeArgs p = {};
  p.y = ViewOf(y), p.q = ViewOf(q), p.k = ViewOf(k), p.v = ViewOf(v);
  p.states = states;
  p.layout = LayoutOf(config);
  p.kernel = config.kernel;
  p.heads = static_cast<int>(config.num_heads);
  p.dim = static_cast<int>(config.head_dim);
  ELA_CHECK(p.layout.features <= kMaxFeatures, "head_dim %d", p.dim);
  p.decay = HeadDecayOf(ctx, config);
  if (dtype == DType::kBf16) {
    Launch<__nv_bfloat16>(ctx, p, q.dim(0));
  } else {
    Launch<float>(ctx, p, q.dim(0));
  }
}

}  // namespace ela::kernels::cuda
