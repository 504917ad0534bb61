// param is float or bf16, the rest float; 28 bytes an element are read and written (26 with a bf16
// param). The sum of squares is of blocks of 64 Ki elements in double, then of the blocks in order.
#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/device_code.cuh"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kSumBlock = 65536;

struct Update {
  float beta1, beta2, rest1, rest2, rate, root, eps, decay, grad_scale;
};

__device__ void Step(const Update& u, float* w, float* m, float* v, float grad) {
  const float g = grad * u.grad_scale;
  *m = u.beta1 * *m + u.rest1 * g;
  *v = u.beta2 * *v + u.rest2 * g * g;
  *w -= u.rate * *m / (sqrtf(*v) * u.root + u.eps) + u.decay * *w;
}

/// N elements a thread; param may be master.
template <class T, int N>
__global__ void UpdateAll(T* param, float* master, float* m, float* v, const float* grad, int64_t n,
                          Update update) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * N;
  if (i >= n) return;
  float w[N], first[N], second[N], g[N];
  Load(w, master + i);
  Load(first, m + i);
  Load(second, v + i);
  Load(g, grad + i);
#pragma unroll
  for (int j = 0; j < N; ++j) Step(update, &w[j], &first[j], &second[j], g[j]);
  StoreAll(m + i, first);
  StoreAll(v + i, second);
  StoreAll(master + i, w);
  if (static_cast<void*>(param) == master) return;
#pragma unroll
  for (int j = 0; j < N; ++j) Store(param + i + j, w[j]);
}

__global__ void SquaresOfBlocks(double* partial, const float* x, int64_t n) {
  __shared__ double sums[kWarp];
  const int64_t begin = blockIdx.x * kSumBlock, end = min(n, begin + kSumBlock);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double value = x[i];
    sum = fma(value, value, sum);
  }
  sum = BlockSum(sum, sums);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void AddPartials(double* out, const double* partial, int64_t n) {
  __shared__ double sums[kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  sum = BlockSum(sum, sums);
  if (threadIdx.x == 0) *out += sum;
}

}  // namespace

void AdamWUpdate(const Context& ctx, Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad,
                 const AdamWConfig& config) {
  const int64_t n = master.numel();
  ELA_CHECK(param.numel() == n && m.numel() == n && v.numel() == n && grad.numel() == n,
            "buffers of different lengths");
  ELA_CHECK(param.dense() && master.dense() && m.dense() && v.dense() && grad.dense());
  if (n == 0) return;
  const double step = static_cast<double>(config.step);
  Update update;
  update.beta1 = static_cast<float>(config.beta1);
  update.beta2 = static_cast<float>(config.beta2);
  update.rest1 = static_cast<float>(1 - config.beta1);
  update.rest2 = static_cast<float>(1 - config.beta2);
  update.rate = static_cast<float>(config.lr / (1 - std::pow(config.beta1, step)));
  update.root = static_cast<float>(1 / std::sqrt(1 - std::pow(config.beta2, step)));
  update.eps = static_cast<float>(config.eps);
  update.decay = static_cast<float>(config.lr * config.weight_decay);
  update.grad_scale = static_cast<float>(config.grad_scale);
  const auto flat = [&](const Tensor& x) { return IsVectorised(x.View({1, n})); };
  const bool vectors = flat(master) && flat(m) && flat(v) && flat(grad);
  const auto launch = [&](auto element, auto count) {
    using T = decltype(element);
    UpdateAll<T, count><<<GridSize(CeilDiv(n / count, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
        DataOf<T>(param), master.as<float>(), m.as<float>(), v.as<float>(), grad.as<float>(), n,
        update);
  };
  WithElement(
      [&](auto element) {
        if (vectors) {
          launch(element, std::integral_constant<int, 4>());
        } else {
          launch(element, std::integral_constant<int, 1>());
        }
      },
      param);
  CheckLaunch("UpdateAll");
}

void SumOfSquares(const Context& ctx, Tensor out, Tensor x) {
  ELA_CHECK(out.numel() == 1 && x.dense());
  const int64_t n = x.numel(), blocks = CeilDiv(n, kSumBlock);
  if (n == 0) return;
  const ArenaScope scope(ctx.scratch);
  double* partial = TakeScratch<double>(ctx, blocks);
  SquaresOfBlocks<<<GridSize(blocks), kBlock, 0, StreamOf(ctx)>>>(partial, x.as<float>(), n);
  AddPartials<<<1, kBlock, 0, StreamOf(ctx)>>>(out.as<double>(), partial, blocks);
  CheckLaunch("SumOfSquares");
}

}  // namespace ela::kernels::cuda
