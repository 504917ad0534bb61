// Logits exist one tile of rows at a time, in float: rows x V of at most 256 MiB. A block a row
// finds its statistics, then overwrites the logits by their gradient (in the type of x, in the same
// memory), which meets the table and x in two products. Three products in all; scratch: the tile
// and 8 bytes a row. x, dx and table are of one type, dtable float.
#include "kernels/device_code.cuh"
#include "kernels/device_gemm.h"
#include "kernels/loss/loss.h"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kTileFloats = int64_t{64} << 20;
constexpr int kRowThreads = 512;

/// Rows of a tile: a multiple of 128 where more than one is needed.
int64_t TileRows(int64_t tokens, int64_t vocabulary) {
  const int64_t rows = std::max<int64_t>(128, kTileFloats / vocabulary / 128 * 128);
  return std::min(tokens, rows);
}

struct RowStatistics {
  float largest;
  double sum;  // of e^(logit - largest)
};

/// N consecutive logits, N = 1 or 8 (two accesses of 16 bytes).
template <int N>
__device__ void LoadLogits(float (&values)[N], const float* from) {
  if constexpr (N == 1) {
    values[0] = *from;
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      *reinterpret_cast<float4*>(values + i) = *reinterpret_cast<const float4*>(from + i);
    }
  }
}

/// The statistics of a row of logits, for every thread of the block.
template <int N>
__device__ RowStatistics StatisticsOf(const float* logits, int64_t n) {
  __shared__ double sums[kWarp];
  __shared__ float maxima[kWarp];
  float largest = -INFINITY, sum = 0;
  for (int64_t v = threadIdx.x * N; v < n; v += kRowThreads * N) {
    alignas(16) float x[N];
    LoadLogits(x, logits + v);
    float most = x[0];
#pragma unroll
    for (int i = 1; i < N; ++i) most = fmaxf(most, x[i]);
    if (most > largest) {
      sum *= __expf(largest - most);
      largest = most;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum += __expf(x[i] - largest);
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float all = WarpMax(largest);
  __syncthreads();
  if (lane == 0) maxima[warp] = all;
  __syncthreads();
  all = WarpMax(lane < kRowThreads / kWarp ? maxima[lane] : -INFINITY);
  // A thread that saw nothing adds nothing; one that saw NaN adds NaN.
  const bool nothing = largest == -INFINITY && sum == 0;
  const float mine = nothing ? 0.0f : sum * __expf(largest - all);
  return {all, BlockSum(static_cast<double>(mine), sums)};
}

/// N gradients to `to`, in accesses of up to 16 bytes.
template <int N, class T>
__device__ void StoreGradients(T* to, const float (&g)[N]) {
  if constexpr (N == 1) {
    Store(to, g[0]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += kVector<T>) {
      float part[kVector<T>];
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) part[j] = g[i + j];
      StoreAll(to + i, part);
    }
  }
}

/// A block a row: loss [rows] (0 without a target), and gradients in place of the logits (T, rows
/// of the same bytes) if `gradients`. N = 8 where rows are of multiples of 8 logits.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    LossOfRows(double* loss, float* tile, const int32_t* targets, int64_t n, float scale,
               bool gradients) {
  float* logits = tile + blockIdx.x * n;
  T* out = reinterpret_cast<T*>(logits);
  const int32_t target = targets[blockIdx.x];
  ELA_DEVICE_CHECK(target < n, ": target %d of %lld\n", target, static_cast<long long>(n));
  if (target < 0) {
    if (threadIdx.x == 0) loss[blockIdx.x] = 0;
    if (!gradients) return;
    for (int64_t v = threadIdx.x; v < n; v += kRowThreads) Store(out + v, 0.0f);
    return;
  }
  const RowStatistics s = StatisticsOf<N>(logits, n);
  if (threadIdx.x == 0) {
    loss[blockIdx.x] =
        static_cast<double>(s.largest) + log(s.sum) - static_cast<double>(logits[target]);
  }
  if (!gradients) return;
  const float factor = static_cast<float>(static_cast<double>(scale) / s.sum);
  __syncthreads();
  // A gradient is never longer than a logit: what is written was read by every thread before.
  for (int64_t base = 0; base < n; base += kRowThreads * N) {
    const int64_t v = base + threadIdx.x * N;
    alignas(16) float g[N] = {};
    if (v < n) LoadLogits(g, logits + v);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      g[i] = factor * __expf(g[i] - s.largest) - (v + i == target ? scale : 0.0f);
    }
    __syncthreads();
    if (v < n) StoreGradients(out + v, g);
  }
}

__global__ void AddLosses(double* out, const double* loss, int64_t n) {
  __shared__ double sums[kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += loss[i];
  sum = BlockSum(sum, sums);
  if (threadIdx.x == 0) *out += sum;
}

__global__ void NegateLosses(float* logprob, const double* loss, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i < n) logprob[i] = static_cast<float>(-loss[i]);
}

/// visit(tile, loss, begin, end) after rows [begin, end) have their losses and, if `gradients`, the
/// gradients of their logits in the tile: rows of `ld` elements of the type of x.
template <class Visit>
void ForEachTile(const Context& ctx, const Tensor& x, const Tensor& table, const Tensor& targets,
                 double scale, bool gradients, const Visit& visit) {
  const int64_t tokens = x.dim(0), n = table.dim(0);
  CheckShape("targets", targets, tokens, 1);
  CheckShape("table", table, n, x.row_numel());
  if (tokens == 0) return;
  ELA_CHECK(n > 0, "an empty vocabulary");
  const ArenaScope scope(ctx.scratch);
  const int64_t rows = TileRows(tokens, n);
  float* tile = TakeScratch<float>(ctx, rows * n);
  double* loss = TakeScratch<double>(ctx, rows);
  for (int64_t begin = 0; begin < tokens; begin += rows) {
    const int64_t end = std::min(tokens, begin + rows);
    const Tensor part = x.Rows(begin, end);
    Gemm(ctx, {.m = end - begin,
               .n = n,
               .k = x.row_numel(),
               .a = part.data(),
               .lda = part.stride(),
               .b = table.data(),
               .ldb = table.stride(),
               .b_transposed = true,
               .c = tile,
               .ldc = n,
               .input = x.dtype()});
    WithElement(
        [&](auto element) {
          using T = decltype(element);
          const auto kernel = n % 8 == 0 ? LossOfRows<T, 8> : LossOfRows<T, 1>;
          kernel<<<GridSize(end - begin), kRowThreads, 0, StreamOf(ctx)>>>(
              loss, tile, targets.as<int32_t>() + begin, n, static_cast<float>(scale), gradients);
        },
        x, table);
    CheckLaunch("LossOfRows");
    visit(tile, loss, begin, end);
  }
}

}  // namespace

void LossForwardBackward(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                         Tensor table, Tensor targets, double scale) {
  if (!dx.empty()) CheckShape("dx", dx, x.dim(0), x.row_numel());
  if (!dtable.empty()) CheckShape("dtable", dtable, table.dim(0), table.row_numel());
  const int64_t n = table.dim(0), d = x.row_numel();
  const int64_t ld = n * static_cast<int64_t>(sizeof(float) / SizeOf(x.dtype()));
  const bool gradients = !dx.empty() || !dtable.empty();
  ForEachTile(ctx, x, table, targets, scale, gradients,
              [&](float* tile, double* loss, int64_t begin, int64_t end) {
                AddLosses<<<1, kRowThreads, 0, StreamOf(ctx)>>>(loss_sum.as<double>(), loss,
                                                                end - begin);
                CheckLaunch("AddLosses");
                if (!dx.empty()) {
                  const Tensor out = dx.Rows(begin, end);
                  Gemm(ctx, {.m = end - begin,
                             .n = d,
                             .k = n,
                             .a = tile,
                             .lda = ld,
                             .b = table.data(),
                             .ldb = table.stride(),
                             .c = out.data(),
                             .ldc = out.stride(),
                             .input = x.dtype(),
                             .output = dx.dtype()});
                }
                if (!dtable.empty()) {
                  const Tensor part = x.Rows(begin, end);
                  Gemm(ctx, {.m = n,
                             .n = d,
                             .k = end - begin,
                             .a = tile,
                             .lda = ld,
                             .a_transposed = true,
                             .b = part.data(),
                             .ldb = part.stride(),
                             .c = dtable.as<float>(),
                             .ldc = dtable.stride(),
                             .added = dtable.as<float>(),
                             .ld_added = dtable.stride(),
                             .input = x.dtype()});
                }
              });
}

void TokenLogprobs(const Context& ctx, Tensor logprob, Tensor x, Tensor table, Tensor targets) {
  CheckShape("logprob", logprob, x.dim(0), 1);
  ForEachTile(ctx, x, table, targets, 0, false,
              [&](float*, double* loss, int64_t begin, int64_t end) {
                NegateLosses<<<GridSize(CeilDiv(end - begin, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
                    logprob.as<float>() + begin, loss, end - begin);
                CheckLaunch("NegateLosses");
              });
}

}  // namespace ela::kernels::cuda
