// param is float or bf16, the rest float; 28 bytes an element are read and written (26 with a bf16
// param).
#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace ela::kernels::cpu {
namespace {

constexpr int64_t kBlock = 16384;
constexpr int64_t kSumBlock = 65536;

/// In eight interleaved sums of double, then the lanes in order.
double SumOfSquaresOf(const float* x, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      const double value = static_cast<double>(x[i + j]);
      lanes[j] += value * value;
    }
  }
  for (int j = 0; i < n; ++i, ++j)
    lanes[j] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (int j = 0; j < 8; ++j) sum += lanes[j];
  return sum;
}

}  // namespace

void AdamWUpdate(const Context& ctx, Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad,
                 const AdamWConfig& config) {
  const int64_t n = master.numel();
  ELA_CHECK(param.numel() == n && m.numel() == n && v.numel() == n && grad.numel() == n,
            "buffers of different lengths");
  ELA_CHECK(param.dense() && master.dense() && m.dense() && v.dense() && grad.dense());
  const double step = static_cast<double>(config.step);
  const float beta1 = static_cast<float>(config.beta1), beta2 = static_cast<float>(config.beta2);
  const float rest1 = static_cast<float>(1 - config.beta1),
              rest2 = static_cast<float>(1 - config.beta2);
  const float rate = static_cast<float>(config.lr / (1 - std::pow(config.beta1, step)));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(config.beta2, step)));
  const float eps = static_cast<float>(config.eps);
  const float decay = static_cast<float>(config.lr * config.weight_decay);
  const float grad_scale = static_cast<float>(config.grad_scale);
  const bool copy = param.data() != master.data();
  ParallelBlocks(ctx, n, kBlock, [&](int64_t begin, int64_t end) {
    float* w = master.as<float>();
    float* first = m.as<float>();
    float* second = v.as<float>();
    const float* gradient = grad.as<float>();
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = gradient[i] * grad_scale;
      first[i] = beta1 * first[i] + rest1 * g;
      second[i] = beta2 * second[i] + rest2 * g * g;
      w[i] -= rate * first[i] / (std::sqrt(second[i]) * root + eps) + decay * w[i];
    }
    if (!copy) return;
    if (IsFloat(param)) {
      std::copy(w + begin, w + end, param.as<float>() + begin);
    } else {
      Narrow(param.as<Bf16>() + begin, w + begin, end - begin);
    }
  });
}

void SumOfSquares(const Context& ctx, Tensor out, Tensor x) {
  ELA_CHECK(out.numel() == 1 && x.dense());
  const int64_t n = x.numel(), blocks = (n + kSumBlock - 1) / kSumBlock;
  ArenaScope scope(ctx.scratch);
  double* partial =
      static_cast<double*>(ctx.scratch->Take(static_cast<size_t>(blocks) * sizeof(double)));
  ParallelFor(ctx, blocks, [&](int64_t b) {
    const int64_t begin = b * kSumBlock;
    partial[b] = SumOfSquaresOf(x.as<float>() + begin, std::min(kSumBlock, n - begin));
  });
  for (int64_t b = 0; b < blocks; ++b) *out.as<double>() += partial[b];
}

}  // namespace ela::kernels::cpu
