// y = x rstd gain. x, y, dx, dy and gain are of one type, rstd and dgain float.
//
// Forward: a warp a row, or of few rows a block, read twice (the second time from cache). Backward:
// a block walks its rows, every thread keeping the same columns, so the sums of dgain stay in
// shared memory; then the blocks' sums are added in order. Blocks depend on the shape alone.
#include "kernels/device_code.cuh"
#include "kernels/early_launch.cuh"
#include "kernels/rms_norm/rms_norm.h"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kMostBlocks = 1024;
constexpr int kMostColumns = 48 * 1024 / 4 - 64;  // of dgain's sums in shared memory

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

template <class T, int N>
__global__ void NormRowsBackward(Rows<T> dx, float* partials, Rows<T> dy, Rows<T> x, const T* gain,
                                 const float* rstd, Rows<T> added, int64_t rows, int d,
                                 int64_t rows_per_block) {
  extern __shared__ float dgain[];  // [d]
  __shared__ float sums[kWarp];
  const int first = static_cast<int>(threadIdx.x) * N, step = static_cast<int>(blockDim.x) * N;
  for (int i = first; i < d; i += step) {
    for (int j = 0; j < N; ++j) dgain[i + j] = 0;
  }
  const int64_t begin = blockIdx.x * rows_per_block, end = min(rows, begin + rows_per_block);
  for (int64_t row = begin; row < end; ++row) {
    const float scale = rstd[row];
    float dot = 0;
    for (int i = first; i < d; i += step) {
      float v[N], grad[N], g[N];
      Load(v, x[row] + i);
      Load(grad, dy[row] + i);
      Load(g, gain + i);
#pragma unroll
      for (int j = 0; j < N; ++j) dot = fmaf(grad[j] * g[j], v[j], dot);
    }
    const float mean = BlockSum(dot, sums) * scale / static_cast<float>(d);
    for (int i = first; i < d; i += step) {
      float v[N], grad[N], g[N], rest[N] = {};
      Load(v, x[row] + i);
      Load(grad, dy[row] + i);
      Load(g, gain + i);
      if (added.data != nullptr) Load(rest, added[row] + i);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float normalised = v[j] * scale;
        dgain[i + j] += grad[j] * normalised;
        v[j] = scale * (grad[j] * g[j] - normalised * mean) + rest[j];
      }
      StoreAll(dx[row] + i, v);
    }
  }
  float* out = partials + static_cast<int64_t>(blockIdx.x) * d;
  for (int i = first; i < d; i += step) {
    for (int j = 0; j < N; ++j) out[i + j] = dgain[i + j];
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
  const int64_t blocks = std::min(kMostBlocks, CeilDiv(rows, 8));
  float* partials = TakeScratch<float>(ctx, blocks * d);
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        const int64_t threads = std::min<int64_t>(CeilDiv(d / n, kWarp) * kWarp, kBlock);
        NormRowsBackward<T, n>
            <<<GridSize(blocks), GridSize(threads), static_cast<size_t>(d) * sizeof(float),
               StreamOf(ctx)>>>(Rows<T>(dx), partials, Rows<T>(dy), Rows<T>(x), DataOf<T>(gain),
                                rstd.as<float>(), added.empty() ? Rows<T>() : Rows<T>(added), rows,
                                static_cast<int>(d), CeilDiv(rows, blocks));
      },
      dx, dy, x, gain_row, added_rows);
  CheckLaunch("NormRowsBackward");
  AddColumnSums(ctx, dgain.as<float>(), partials, blocks, d);
}

}  // namespace ela::kernels::cuda
