// y = x rstd gain. x, y, dx, dy and gain are of one type, rstd and dgain float.
//
// Forward: a warp a row, or of few rows a block, read twice (the second time from cache). Backward:
// a warp a row (of long rows a block), whose three inputs are all on their way to registers before
// the first is used: 6 KiB a warp, 72 KiB a multiprocessor. A thread keeps its columns from row to
// row, and the sums of their dgain in registers; a block's are added through shared memory, then
// the blocks' in order. Blocks depend on the shape alone.
#include <type_traits>

#include "kernels/device_code.cuh"
#include "kernels/early_launch.cuh"
#include "kernels/rms_norm/rms_norm.h"

namespace ela::kernels::cuda {
namespace {

// Of backward passes.
constexpr int kHeld = 32;                         // elements of a row a thread
constexpr int kMostWarps = 12;                    // a multiprocessor: 168 registers a thread
constexpr int64_t kWarps = 132 * kMostWarps;      // of a launch: what a card holds at once
constexpr int kFewWarps = 4;                      // of a block where a row is a warp's
constexpr int kMostColumns = 48 * 1024 / 4 - 64;  // of dgain's sums in shared memory
static_assert(kMostColumns <= kMostWarps * kWarp * kHeld);
static_assert(kFewWarps * kWarp * kHeld <= kMostColumns);

/// kThreads of a row: a warp or the block.
template <class T, int N, int kThreads>
__global__ void NormRows(Rows<T> y, float* rstd, Rows<T> x, const T* gain, int64_t rows, int d) {
  __shared__ float sums[kWarp];
  StartEarly();
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kBlock / kThreads) + threadIdx.x / kThreads;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kThreads;
  float squares = 0;
  for (int i = lane * N; i < d; i += kThreads * N) {
    float v[N];
    Load(v, x[row] + i);
#pragma unroll
    for (int j = 0; j < N; ++j) squares = fmaf(v[j], v[j], squares);
  }
  squares = kThreads == kWarp ? WarpSum(squares) : BlockSum(squares, sums);
  const float mean = squares / static_cast<float>(d);
  const float scale = 1.0f / sqrtf(mean + static_cast<float>(kRmsNormEps));
  if (lane == 0) rstd[row] = scale;
  for (int i = lane * N; i < d; i += kThreads * N) {
    float v[N], g[N];
    Load(v, x[row] + i);
    Load(g, gain + i);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = v[j] * scale * g[j];
    StoreAll(y[row] + i, v);
  }
}

/// What a thread of a backward pass holds of a row: every vector at a distance of `step` elements
/// from its first on; zeros past the end.
template <class T, int N>
struct Held {
  using Vector = std::conditional_t<N == 1, T, uint4>;
  Vector vectors[kHeld / N] = {};

  __device__ void LoadFrom(const T* row, int first, int step, int d) {
#pragma unroll
    for (int i = 0; i < kHeld / N; ++i) {
      const int column = first + i * step;
      if (column < d) vectors[i] = *reinterpret_cast<const Vector*>(row + column);
    }
  }
  __device__ void Get(float (&values)[N], int i) const {
    Load(values, reinterpret_cast<const T*>(&vectors[i]));
  }
};

/// `threads` of a row: a warp, of several a block, or the block.
template <class T, int N>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    NormRowsBackward(Rows<T> dx, float* partials, Rows<T> dy, Rows<T> x, const T* gain,
                     const float* rstd, Rows<T> added, int64_t rows, int d, int threads) {
  extern __shared__ float parts[];  // [rows at a time, d]
  __shared__ float sums[kWarp];
  const int part = static_cast<int>(threadIdx.x) / threads;
  const int at_once = static_cast<int>(blockDim.x) / threads;
  const int first = static_cast<int>(threadIdx.x) % threads * N, step = threads * N;
  Held<T, N> in, grads, rests;
  float dgain[kHeld] = {};
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * at_once + part; row < rows;
       row += static_cast<int64_t>(gridDim.x) * at_once) {
    in.LoadFrom(x[row], first, step, d);
    grads.LoadFrom(dy[row], first, step, d);
    if (added.data != nullptr) rests.LoadFrom(added[row], first, step, d);
    const float scale = rstd[row];
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kHeld / N; ++i) {
      float v[N], grad[N], g[N] = {};
      in.Get(v, i);
      grads.Get(grad, i);
      if (first + i * step < d) Load(g, gain + first + i * step);
#pragma unroll
      for (int j = 0; j < N; ++j) dot = fmaf(grad[j] * g[j], v[j], dot);
    }
    dot = threads == kWarp ? WarpSum(dot) : BlockSum(dot, sums);
    const float mean = dot * scale / static_cast<float>(d);
#pragma unroll
    for (int i = 0; i < kHeld / N; ++i) {
      float v[N], grad[N], g[N] = {}, rest[N];
      in.Get(v, i);
      grads.Get(grad, i);
      rests.Get(rest, i);
      if (first + i * step < d) Load(g, gain + first + i * step);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float normalised = v[j] * scale;
        dgain[i * N + j] += grad[j] * normalised;
        v[j] = scale * (grad[j] * g[j] - normalised * mean) + rest[j];
      }
      if (first + i * step < d) StoreAll(dx[row] + first + i * step, v);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int column = first + i / N * step + i % N;
    if (column < d) parts[part * d + column] = dgain[i];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < d; i += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int p = 0; p < at_once; ++p) sum += parts[p * d + i];
    partials[static_cast<int64_t>(blockIdx.x) * d + i] = sum;
  }
}

}  // namespace

void RmsNormForward(const Context& ctx, Tensor y, Tensor rstd, Tensor x, Tensor gain) {
  const int64_t rows = x.dim(0), d = x.row_numel();
  CheckShape("y", y, rows, d);
  CheckShape("rstd", rstd, rows, 1);
  CheckShape("gain", gain, d, 1);
  if (rows == 0) return;
  const Tensor gain_row = gain.View({1, d});
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        const bool few = rows <= kFewRows;
        const auto kernel = few ? NormRows<T, n, kBlock> : NormRows<T, n, kWarp>;
        LaunchEarly(ctx, rows, kernel, dim3(GridSize(few ? rows : CeilDiv(rows, kBlock / kWarp))),
                    kBlock, Rows<T>(y), rstd.as<float>(), Rows<T>(x), DataOf<T>(gain), rows,
                    static_cast<int>(d));
      },
      y, x, gain_row);
  CheckLaunch("NormRows");
}

void RmsNormBackward(const Context& ctx, Tensor dx, Tensor dgain, Tensor dy, Tensor x, Tensor gain,
                     Tensor rstd, Tensor added) {
  const int64_t rows = x.dim(0), d = x.row_numel();
  CheckShape("dx", dx, rows, d);
  CheckShape("dy", dy, rows, d);
  CheckShape("rstd", rstd, rows, 1);
  CheckShape("gain", gain, d, 1);
  CheckShape("dgain", dgain, d, 1);
  if (rows == 0) return;
  ELA_CHECK(d <= kMostColumns, "rows of %lld elements, at most %d", static_cast<long long>(d),
            kMostColumns);
  if (!added.empty()) CheckShape("added", added, rows, d);
  const ArenaScope scope(ctx.scratch);
  const Tensor gain_row = gain.View({1, d}), added_rows = added.empty() ? x : added;
  const int64_t row_warps = CeilDiv(d, kWarp * kHeld);
  const int64_t at_once = row_warps == 1 ? kFewWarps : 1, block_warps = row_warps * at_once;
  const int64_t blocks = std::min(kWarps / block_warps, CeilDiv(rows, at_once));
  float* partials = TakeScratch<float>(ctx, blocks * d);
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        NormRowsBackward<T, n><<<GridSize(blocks), GridSize(block_warps * kWarp),
                                 static_cast<size_t>(at_once * d) * sizeof(float), StreamOf(ctx)>>>(
            Rows<T>(dx), partials, Rows<T>(dy), Rows<T>(x), DataOf<T>(gain), rstd.as<float>(),
            added.empty() ? Rows<T>() : Rows<T>(added), rows, static_cast<int>(d),
            static_cast<int>(row_warps * kWarp));
      },
      dx, dy, x, gain_row, added_rows);
  CheckLaunch("NormRowsBackward");
  AddColumnSums(ctx, dgain.as<float>(), partials, blocks, d);
}

}  // namespace ela::kernels::cuda
