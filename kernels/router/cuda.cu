// x, dx, w and b are of one type, everything else float (experts i32). Logits, softmax and their
// gradients are float: bf16 products sum in float, and the gradient of the logits meets bf16 x and
// w as the sum of two bf16 numbers, its 16 leading bits.
#include "kernels/device_code.cuh"
#include "kernels/device_gemm.h"
#include "kernels/device_sort.h"
#include "kernels/router/router.h"

namespace ela::kernels::cuda {
namespace {

constexpr float kEps = 1e-8f;
constexpr int kMostExperts = 4096;
constexpr int kMostPerLane = kMostExperts / kWarp;
constexpr int kWarps = kBlock / kWarp;
constexpr int64_t kMostParts = 512;

__device__ int LaneOf() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ int64_t RowOf() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}

/// Experts already chosen, of those that a lane looks at (lane, lane + 32, ...).
struct TakenExperts {
  uint32_t bits[(kMostPerLane + 31) / 32] = {};
  __device__ bool Has(int i) const { return bits[i / 32] >> (i % 32) & 1; }
  __device__ void Add(int i) { bits[i / 32] |= 1u << (i % 32); }
};

/// The larger of two candidates, the lower expert of equals (or of what does not compare).
__device__ void KeepBetter(float* p, int* expert, float other_p, int other) {
  const bool better =
      *expert < 0 ||
      (other >= 0 && (other_p > *p || (!(other_p < *p) && !(*p > other_p) && other < *expert)));
  if (other < 0 || !better) return;
  *p = other_p;
  *expert = other;
}

/// A warp a token: probs holds logits without their bias on entry.
template <class T>
__global__ void ChooseExperts(Rows<float> probs, Rows<float> weights, Rows<int32_t> experts,
                              const T* bias, int64_t tokens, int n, int k) {
  const int64_t token = RowOf();
  if (token >= tokens) return;
  const int lane = LaneOf();
  float* row = probs[token];
  float largest = -INFINITY, sum = 0;
  for (int e = lane; e < n; e += kWarp) largest = fmaxf(largest, row[e] + ToFloat(bias[e]));
  largest = WarpMax(largest);
  for (int e = lane; e < n; e += kWarp) {
    row[e] = expf(row[e] + ToFloat(bias[e]) - largest);
    sum += row[e];
  }
  const float scale = 1.0f / WarpSum(sum);
  for (int e = lane; e < n; e += kWarp) row[e] *= scale;

  TakenExperts taken;
  float total = kEps;
  for (int j = 0; j < k; ++j) {
    float best_p = 0;
    int best = -1;
    for (int e = lane, i = 0; e < n; e += kWarp, ++i) {
      if (!taken.Has(i)) KeepBetter(&best_p, &best, row[e], e);
    }
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const float p = __shfl_xor_sync(kAllLanes, best_p, lanes);
      const int e = __shfl_xor_sync(kAllLanes, best, lanes);
      KeepBetter(&best_p, &best, p, e);
    }
    if (best % kWarp == lane) taken.Add(best / kWarp);
    total += best_p;
    if (lane == 0) {
      experts[token][j] = best;
      weights[token][j] = best_p;
    }
  }
  __syncwarp();
  for (int j = lane; j < k; j += kWarp) weights[token][j] /= total;
}

struct LogitGradients {
  Rows<float> dweights, probs, weights;
  Rows<int32_t> experts;
  const float* dprobs_all;  // [E] or null
  int64_t tokens;
  int n, k;
};

/// A warp a token: dlogits [T, n] in float.
__global__ void GradientOfLogits(float* dlogits, LogitGradients g) {
  const int64_t token = RowOf();
  if (token >= g.tokens) return;
  const int lane = LaneOf();
  const float* probs = g.probs[token];
  const int32_t* chosen = g.experts[token];
  float* out = dlogits + token * g.n;
  float total = kEps, mean = 0;
  for (int j = 0; j < g.k; ++j) {  // every lane the same
    total += probs[chosen[j]];
    mean += g.dweights[token][j] * g.weights[token][j];
  }
  for (int e = lane; e < g.n; e += kWarp) {
    out[e] = g.dprobs_all != nullptr ? g.dprobs_all[e] : 0.0f;
  }
  __syncwarp();
  for (int j = lane; j < g.k; j += kWarp) {
    out[chosen[j]] += (g.dweights[token][j] - mean) / total;
  }
  __syncwarp();
  float dot = 0;
  for (int e = lane; e < g.n; e += kWarp) dot = fmaf(probs[e], out[e], dot);
  dot = WarpSum(dot);
  for (int e = lane; e < g.n; e += kWarp) out[e] = probs[e] * (out[e] - dot);
}

/// split [T, 2n] = the leading bf16 of dlogits [T, n] and what it leaves.
__global__ void SplitGradients(bf16* split, const float* dlogits, int64_t tokens, int n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= tokens * n) return;
  const int64_t token = i / n, e = i - token * n;
  const bf16 high = __float2bfloat16(dlogits[i]);
  split[token * 2 * n + e] = high;
  split[token * 2 * n + n + e] = __float2bfloat16(dlogits[i] - __bfloat162float(high));
}

/// Parts of the sums of columns of x [rows, columns]: block (32 columns, part), in Sum.
template <class Sum>
__global__ void SumColumns(Sum* partials, Rows<const float> x, int64_t rows, int columns) {
  __shared__ Sum sums[kWarps][kWarp];
  const int column = static_cast<int>(blockIdx.x) * kWarp + static_cast<int>(threadIdx.x);
  const int64_t parts = gridDim.y, part = blockIdx.y;
  const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
  Sum sum = 0;
  if (column < columns) {
    for (int64_t r = begin + threadIdx.y; r < end; r += kWarps) sum += x[r][column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int y = 1; y < kWarps; ++y) sum += sums[y][threadIdx.x];
  partials[part * columns + column] = sum;
}

__global__ void AddSums(double* out, const double* partials, int64_t parts, int columns) {
  const int column = static_cast<int>(blockIdx.x) * kBlock + static_cast<int>(threadIdx.x);
  if (column >= columns) return;
  double sum = 0;
  for (int64_t p = 0; p < parts; ++p) sum += partials[p * columns + column];
  out[column] += sum;
}

__global__ void CountChoices(unsigned long long* counts, Rows<int32_t> experts, int64_t tokens,
                             int k) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int expert = i < tokens * k ? experts[i / k][i % k] : -1;
  const unsigned same = __match_any_sync(kAllLanes, expert);
  if (expert >= 0 && (same & ((1u << LaneOf()) - 1)) == 0) {
    atomicAdd(&counts[expert], static_cast<unsigned long long>(__popc(same)));
  }
}

template <class Sum>
int64_t SumParts(const Context& ctx, Sum* partials, Rows<const float> x, int64_t rows,
                 int64_t columns, int64_t parts) {
  const dim3 grid(GridSize(CeilDiv(columns, kWarp)), GridSize(parts));
  SumColumns<Sum><<<grid, dim3(kWarp, kWarps), 0, StreamOf(ctx)>>>(partials, x, rows,
                                                                   static_cast<int>(columns));
  CheckLaunch("SumColumns");
  return parts;
}

int64_t PartsOf(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, kMostParts); }

/// dx = g w and dw += g^T x, for float g [T, n].
void FloatProducts(const Context& ctx, const Tensor& dx, const Tensor& dw, const float* g,
                   const Tensor& x, const Tensor& w) {
  const int64_t tokens = x.dim(0), d = x.row_numel(), n = w.dim(0);
  Gemm(ctx, {.m = tokens,
             .n = d,
             .k = n,
             .a = g,
             .lda = n,
             .b = w.data(),
             .ldb = w.stride(),
             .c = dx.data(),
             .ldc = dx.stride()});
  Gemm(ctx, {.m = n,
             .n = d,
             .k = tokens,
             .a = g,
             .lda = n,
             .a_transposed = true,
             .b = x.data(),
             .ldb = x.stride(),
             .c = dw.data(),
             .ldc = dw.stride(),
             .added = dw.data(),
             .ld_added = dw.stride()});
}

/// The same in bf16: [high, low] against w twice.
void SplitProducts(const Context& ctx, const Tensor& dx, const Tensor& dw, const float* g,
                   const Tensor& x, const Tensor& w) {
  const int64_t tokens = x.dim(0), d = x.row_numel(), n = w.dim(0);
  bf16* split = TakeScratch<bf16>(ctx, tokens * 2 * n);
  bf16* twice = TakeScratch<bf16>(ctx, 2 * n * d);
  SplitGradients<<<GridSize(CeilDiv(tokens * n, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
      split, g, tokens, static_cast<int>(n));
  CheckLaunch("SplitGradients");
  const size_t row_bytes = static_cast<size_t>(d) * sizeof(bf16);
  for (bf16* to : {twice, twice + n * d}) {
    ELA_CUDA_CHECK(cudaMemcpy2DAsync(
        to, row_bytes, w.data(), static_cast<size_t>(w.stride()) * sizeof(bf16), row_bytes,
        static_cast<size_t>(n), cudaMemcpyDeviceToDevice, StreamOf(ctx)));
  }
  Gemm(ctx, {.m = tokens,
             .n = d,
             .k = 2 * n,
             .a = split,
             .lda = 2 * n,
             .b = twice,
             .ldb = d,
             .c = dx.data(),
             .ldc = dx.stride(),
             .input = DType::kBf16,
             .output = DType::kBf16});
  for (const bf16* part : {split, split + n}) {
    Gemm(ctx, {.m = n,
               .n = d,
               .k = tokens,
               .a = part,
               .lda = 2 * n,
               .a_transposed = true,
               .b = x.data(),
               .ldb = x.stride(),
               .c = dw.data(),
               .ldc = dw.stride(),
               .added = dw.data(),
               .ld_added = dw.stride(),
               .input = DType::kBf16});
  }
}

}  // namespace

void RouterForward(const Context& ctx, Tensor probs, Tensor weights, Tensor experts, Tensor x,
                   Tensor w, Tensor b) {
  const int64_t tokens = x.dim(0), d = x.row_numel(), n = w.dim(0), k = weights.row_numel();
  CheckShape("probs", probs, tokens, n);
  CheckShape("weights", weights, tokens, k);
  CheckShape("experts", experts, tokens, k);
  CheckShape("w", w, n, d);
  CheckShape("b", b, n, 1);
  ELA_CHECK(k <= n && n <= kMostExperts, "%lld of %lld experts (at most %d)",
            static_cast<long long>(k), static_cast<long long>(n), kMostExperts);
  if (tokens == 0) return;
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        Gemm(ctx, {.m = tokens,
                   .n = n,
                   .k = d,
                   .a = x.data(),
                   .lda = x.stride(),
                   .b = w.data(),
                   .ldb = w.stride(),
                   .b_transposed = true,
                   .c = probs.as<float>(),
                   .ldc = probs.stride(),
                   .input = x.dtype()});
        ChooseExperts<T><<<GridSize(CeilDiv(tokens, kWarps)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<float>(probs), Rows<float>(weights), Rows<int32_t>(experts), DataOf<T>(b), tokens,
            static_cast<int>(n), static_cast<int>(k));
      },
      x, w, b);
  CheckLaunch("ChooseExperts");
}

void RouterBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dweights,
                    Tensor dprobs_all, Tensor probs, Tensor weights, Tensor experts, Tensor x,
                    Tensor w) {
  const int64_t tokens = x.dim(0), d = x.row_numel(), n = w.dim(0), k = weights.row_numel();
  CheckShape("dx", dx, tokens, d);
  CheckShape("dw", dw, n, d);
  CheckShape("db", db, n, 1);
  CheckShape("dweights", dweights, tokens, k);
  if (!dprobs_all.empty()) CheckShape("dprobs_all", dprobs_all, n, 1);
  CheckShape("probs", probs, tokens, n);
  if (tokens == 0) return;
  const ArenaScope scope(ctx.scratch);
  float* dlogits = TakeScratch<float>(ctx, tokens * n);
  LogitGradients g;
  g.dweights = Rows<float>(dweights);
  g.probs = Rows<float>(probs);
  g.weights = Rows<float>(weights);
  g.experts = Rows<int32_t>(experts);
  g.dprobs_all = dprobs_all.empty() ? nullptr : dprobs_all.as<float>();
  g.tokens = tokens;
  g.n = static_cast<int>(n);
  g.k = static_cast<int>(k);
  GradientOfLogits<<<GridSize(CeilDiv(tokens, kWarps)), kBlock, 0, StreamOf(ctx)>>>(dlogits, g);
  CheckLaunch("GradientOfLogits");
  const int64_t parts = PartsOf(tokens);
  float* partials = TakeScratch<float>(ctx, parts * n);
  SumParts(ctx, partials, Rows<const float>(dlogits, n), tokens, n, parts);
  AddColumnSums(ctx, db.as<float>(), partials, parts, n);
  if (x.dtype() == DType::kF32) {
    FloatProducts(ctx, dx, dw, dlogits, x, w);
  } else {
    SplitProducts(ctx, dx, dw, dlogits, x, w);
  }
}

void RouterStatistics(const Context& ctx, Tensor prob_sums, Tensor counts, Tensor probs,
                      Tensor experts) {
  const int64_t tokens = probs.dim(0), n = prob_sums.dim(0), k = experts.row_numel();
  CheckShape("probs", probs, tokens, n);
  CheckShape("experts", experts, tokens, k);
  CheckShape("counts", counts, n, 1);
  if (tokens == 0) return;
  const ArenaScope scope(ctx.scratch);
  const int64_t parts = PartsOf(tokens);
  double* partials = TakeScratch<double>(ctx, parts * n);
  SumParts(ctx, partials, Rows<const float>(probs.as<float>(), probs.stride()), tokens, n, parts);
  AddSums<<<GridSize(CeilDiv(n, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
      prob_sums.as<double>(), partials, parts, static_cast<int>(n));
  CountChoices<<<GridSize(CeilDiv(tokens * k, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
      reinterpret_cast<unsigned long long*>(counts.as<int64_t>()), Rows<int32_t>(experts), tokens,
      static_cast<int>(k));
  CheckLaunch("RouterStatistics");
}

}  // namespace ela::kernels::cuda
