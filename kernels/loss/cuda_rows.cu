// LossOfRows reads a row once (4 V bytes) and writes its gradients (V elements): a block keeps up
// to 32,768 logits in registers, and copies its next row into shared memory in the meantime, so
// that memory does not wait for arithmetic. Longer rows are read twice. Sums are of a fixed order:
// of a thread's logits in float, of threads in double.
#include <cuda_pipeline_primitives.h>

#include <cfloat>

#include "kernels/device_code.cuh"
#include "kernels/loss/cuda_rows.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kPieces = 8;           // of 4 logits, that a thread has of a row
constexpr int kSlice = 4 * kPieces;  // logits
constexpr int kMostKept = kMostThreads * kSlice;

struct RowStatistics {
  double sum;  // of e^(logit - largest)
  float largest;
};

/// The logit where piece j of this thread begins: neighbours have neighbouring pieces.
__device__ int PieceAt(int j) { return 4 * static_cast<int>(j * blockDim.x + threadIdx.x); }

/// This thread's slice of the n logits of a row that begin at `begin`, -inf past the end.
/// piece(j, v): the 4 logits at v; of any value if v >= n.
template <class Piece>
__device__ void LoadSlice(float (&x)[kSlice], int begin, int n, const Piece& piece) {
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    const int v = begin + PieceAt(j), left = n - v;
    const float4 p = piece(j, v);
    x[4 * j] = left > 0 ? p.x : -INFINITY;
    x[4 * j + 1] = left > 1 ? p.y : -INFINITY;
    x[4 * j + 2] = left > 2 ? p.z : -INFINITY;
    x[4 * j + 3] = left > 3 ? p.w : -INFINITY;
  }
}

__device__ float LargestOf(const float (&x)[kSlice], float largest) {
#pragma unroll
  for (int i = 0; i < kSlice; ++i) largest = fmaxf(largest, x[i]);
  return largest;
}

/// x = e^(x - largest). Returns the sum.
__device__ float Exponentials(float (&x)[kSlice], float largest) {
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kSlice; ++i) {
    x[i] = __expf(x[i] - largest);
    sums[i % 4] += x[i];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// The statistics of a row from those of the threads' parts, for every thread. `shared`: a place a
/// warp, that no thread reads any more. One barrier.
__device__ RowStatistics Combined(float largest, float sum, RowStatistics* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const float of_warp = WarpMax(largest);
  const double warp_sum = WarpSum(static_cast<double>(sum * __expf(largest - of_warp)));
  if (lane == 0) shared[warp] = {warp_sum, of_warp};
  __syncthreads();
  RowStatistics s = {0, -FLT_MAX};
  if (lane < static_cast<int>(blockDim.x) / kWarp) s = shared[lane];
  const float all = WarpMax(s.largest);
  return {WarpSum(s.sum * static_cast<double>(__expf(s.largest - all))), all};
}

__device__ void StorePiece(float* to, const float (&g)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(g[0], g[1], g[2], g[3]);
}
__device__ void StorePiece(bf16* to, const float (&g)[4]) {
  union {
    uint2 bits;
    __nv_bfloat162 pairs[2];
  } u = {};
  u.pairs[0] = __floats2bfloat162_rn(g[0], g[1]);
  u.pairs[1] = __floats2bfloat162_rn(g[2], g[3]);
  *reinterpret_cast<uint2*>(to) = u.bits;
}

/// The gradients factor x, less `scale` for the target, of a slice that begins as in LoadSlice.
template <class T>
__device__ void StoreSlice(T* row, const float (&x)[kSlice], float factor, int target, float scale,
                           int begin, int n) {
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    const int v = begin + PieceAt(j);
    float g[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) g[i] = factor * x[4 * j + i];
    if (v <= target && target < v + 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) g[i] -= v + i == target ? scale : 0.0f;
    }
    if (v < n) StorePiece(row + v, g);
  }
}

/// A row without a target.
template <class T>
__device__ void StoreNothing(T* gradients, double* loss, int n) {
  if (threadIdx.x == 0) *loss = 0;
  if (gradients == nullptr) return;
  const float zeros[4] = {};
  for (int v = PieceAt(0); v < n; v += 4 * static_cast<int>(blockDim.x)) {
    StorePiece(gradients + v, zeros);
  }
}

__device__ double LossOf(const RowStatistics& s, float target_logit) {
  return static_cast<double>(s.largest) + log(s.sum) - static_cast<double>(target_logit);
}

__device__ float FactorOf(const RowStatistics& s, float scale) {
  return scale / static_cast<float>(s.sum);
}

/// What both kernels read and write: rows [rows, stride], of n logits.
template <class T>
struct RowsOfLogits {
  double* loss;  // [rows], 0 without a target
  T* gradients;  // null: not wanted
  const float* logits;
  const int32_t* targets;
  int64_t stride;
  int rows, n;
  float scale;

  __device__ const float* LogitsOf(int row) const { return logits + row * stride; }
  __device__ T* GradientsOf(int row) const {
    return gradients == nullptr ? nullptr : gradients + row * stride;
  }
  /// -1 past the last row.
  __device__ int TargetOf(int row) const { return row < rows ? targets[row] : -1; }
  __device__ void Check(int target) const {
    ELA_DEVICE_CHECK(target < n, ": target %d of %d\n", target, n);
  }
};

/// This thread's slice of a row on its way to `kept`, which no other thread reads.
__device__ void CopySlice(float4* kept, const float* logits, int n) {
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    const int v = PieceAt(j);
    if (v < n) {
      __pipeline_memcpy_async(kept + j * blockDim.x + threadIdx.x, logits + v, sizeof(float4));
    }
  }
  __pipeline_commit();
}

/// Rows of at most kSlice logits a thread: a block walks over rows gridDim.x apart.
template <class T>
__global__ void __launch_bounds__(kMostThreads) LossOfRows(RowsOfLogits<T> p) {
  extern __shared__ float4 kept[];
  __shared__ RowStatistics exchanged[2][kWarp];
  const int step = static_cast<int>(gridDim.x);
  int row = static_cast<int>(blockIdx.x);
  int target = p.TargetOf(row), next = p.TargetOf(row + step);
  if (target >= 0) CopySlice(kept, p.LogitsOf(row), p.n);
  // A place may be written again once all have passed the barrier of the turn between.
  int turn = 0;
  for (; row < p.rows; row += step) {
    const int after = p.TargetOf(row + 2 * step);  // what it waits for comes a turn later
    p.Check(target);
    float x[kSlice], largest = -FLT_MAX, target_logit = 0;
    if (target >= 0) {
      if (threadIdx.x == 0) target_logit = p.LogitsOf(row)[target];
      __pipeline_wait_prior(0);
      __syncwarp();  // no read of it is moved before
      LoadSlice(x, 0, p.n, [&](int j, int) { return kept[j * blockDim.x + threadIdx.x]; });
      largest = LargestOf(x, largest);
      __syncwarp();  // what is kept has been read
    }
    if (next >= 0) CopySlice(kept, p.LogitsOf(row + step), p.n);
    if (target < 0) {
      StoreNothing(p.GradientsOf(row), p.loss + row, p.n);
    } else {
      const float sum = Exponentials(x, largest);
      const RowStatistics s = Combined(largest, sum, exchanged[turn]);
      turn ^= 1;
      if (p.gradients != nullptr) {
        const float factor = FactorOf(s, p.scale) * __expf(largest - s.largest);
        StoreSlice(p.GradientsOf(row), x, factor, target, p.scale, 0, p.n);
      }
      if (threadIdx.x == 0) p.loss[row] = LossOf(s, target_logit);
    }
    target = next;
    next = after;
  }
}

/// Rows of any length, a block each: read for the statistics, and again for the gradients.
template <class T>
__global__ void __launch_bounds__(kMostThreads) LossOfLongRows(RowsOfLogits<T> p) {
  __shared__ RowStatistics exchanged[kWarp];
  const int row = static_cast<int>(blockIdx.x);
  const int target = p.TargetOf(row), step = kSlice * static_cast<int>(blockDim.x);
  p.Check(target);
  if (target < 0) return StoreNothing(p.GradientsOf(row), p.loss + row, p.n);
  const float* logits = p.LogitsOf(row);
  const int last = (p.n - 1) / 4 * 4;
  const auto piece = [&](int, int v) {
    return *reinterpret_cast<const float4*>(logits + min(v, last));
  };
  float x[kSlice], largest = -FLT_MAX, sum = 0;
  for (int begin = 0; begin < p.n; begin += step) {
    LoadSlice(x, begin, p.n, piece);
    const float before = largest;
    largest = LargestOf(x, before);
    sum = sum * __expf(before - largest) + Exponentials(x, largest);
  }
  const RowStatistics s = Combined(largest, sum, exchanged);
  if (threadIdx.x == 0) p.loss[row] = LossOf(s, logits[target]);
  if (p.gradients == nullptr) return;
  const float factor = FactorOf(s, p.scale);
  for (int begin = 0; begin < p.n; begin += step) {
    LoadSlice(x, begin, p.n, piece);
    Exponentials(x, s.largest);
    StoreSlice(p.GradientsOf(row), x, factor, target, p.scale, begin, p.n);
  }
}

/// Bytes of shared memory that a block may ask for.
int MostSharedBytes() {
  int device = 0, bytes = 0;
  ELA_CUDA_CHECK(cudaGetDevice(&device));
  ELA_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

template <class T>
void Launch(const Context& ctx, const RowsOfLogits<T>& p) {
  constexpr int kWarpSlices = kWarp * kSlice;
  const int threads = static_cast<int>(CeilDiv(std::min(p.n, kMostKept), kWarpSlices)) * kWarp;
  const int bytes = threads * kSlice * static_cast<int>(sizeof(float));
  const int fixed = 2 * kWarp * static_cast<int>(sizeof(RowStatistics));
  // Of every launch, so that no other thread's lowers it before this one's.
  const int most = std::min(kMostKept * static_cast<int>(sizeof(float)), MostSharedBytes() - fixed);
  if (p.n > kMostKept || bytes > most) {
    LossOfLongRows<T><<<GridSize(p.rows), kMostThreads, 0, StreamOf(ctx)>>>(p);
    CheckLaunch("LossOfLongRows");
    return;
  }
  ELA_CUDA_CHECK(
      cudaFuncSetAttribute(LossOfRows<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  const int64_t blocks = int64_t{NumMultiprocessors(ctx)} * (kMostThreads / threads);
  LossOfRows<T><<<GridSize(std::min<int64_t>(p.rows, blocks)), threads, bytes, StreamOf(ctx)>>>(p);
  CheckLaunch("LossOfRows");
}

}  // namespace

void RunLossOfRows(const Context& ctx, double* loss, void* gradients, const float* logits,
                   const int32_t* targets, int64_t rows, int64_t n, int64_t stride, double scale,
                   DType dtype) {
  ELA_CHECK(n > 0 && n <= INT32_MAX - kMostKept && stride >= n && stride % 8 == 0,
            "%lld logits at a stride of %lld", static_cast<long long>(n),
            static_cast<long long>(stride));
  const auto launch = [&](auto element) {
    using T = decltype(element);
    Launch<T>(ctx, {loss, static_cast<T*>(gradients), logits, targets, stride,
                    static_cast<int>(rows), static_cast<int>(n), static_cast<float>(scale)});
  };
  if (dtype == DType::kBf16) {
    launch(bf16());
  } else {
    launch(float());
  }
}

}  // namespace ela::kernels::cuda
