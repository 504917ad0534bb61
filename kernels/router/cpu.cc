// x, dx, w and b are float or bf16, each on its own; everything else is float (experts i32). Logits
// and softmax are float.
#include <array>

#include "kernels/gemm.h"
#include "kernels/parallel.h"
#include "kernels/router/router.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

constexpr float kEps = 1e-8f;

void SoftmaxRow(float* row, const float* bias, int64_t n) {
  for (int64_t e = 0; e < n; ++e) row[e] += bias[e];
  const float scale = 1.0f / ExpSum(row, row, MaxOf(row, n), n);
  for (int64_t e = 0; e < n; ++e) row[e] *= scale;
}

/// The k largest, the first of equals; always k different experts, even among NaNs.
void ChooseExperts(float* weights, int32_t* chosen, const float* probs, int64_t n, int64_t k) {
  const auto taken = [&](int64_t e, int64_t j) {
    return std::find(chosen, chosen + j, static_cast<int32_t>(e)) != chosen + j;
  };
  float sum = kEps;
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; ++e) {
      if ((best < 0 || probs[e] > probs[best]) && !taken(e, j)) best = e;
    }
    chosen[j] = static_cast<int32_t>(best);
    sum += probs[best];
  }
  for (int64_t j = 0; j < k; ++j) weights[j] = probs[chosen[j]] / sum;
}

/// dlogits [E] of one token from the gradient of its weights [K] and of all its probabilities.
void RowGradient(float* dlogits, const float* dweights, const float* dprobs_all, const float* probs,
                 const float* weights, const int32_t* chosen, int64_t n, int64_t k) {
  float sum = kEps, mean = 0;
  for (int64_t j = 0; j < k; ++j) {
    sum += probs[chosen[j]];
    mean += dweights[j] * weights[j];
  }
  for (int64_t e = 0; e < n; ++e) dlogits[e] = dprobs_all != nullptr ? dprobs_all[e] : 0.0f;
  for (int64_t j = 0; j < k; ++j) dlogits[chosen[j]] += (dweights[j] - mean) / sum;
  const float dot = Dot(probs, dlogits, n);
  for (int64_t e = 0; e < n; ++e) dlogits[e] = probs[e] * (dlogits[e] - dot);
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
  ELA_CHECK(k <= n, "%lld of %lld experts", static_cast<long long>(k), static_cast<long long>(n));
  if (tokens == 0) return;
  ArenaScope scope(ctx.scratch);
  const Tensor wide_x = Widened(ctx, x), wide_w = Widened(ctx, w);
  const float* bias = Widened(ctx, b).as<float>();
  Gemm(ctx, {{.m = tokens,
              .n = n,
              .k = d,
              .a = wide_x.as<float>(),
              .lda = wide_x.stride(),
              .b = wide_w.as<float>(),
              .ldb = wide_w.stride(),
              .b_transposed = true,
              .c = probs.as<float>(),
              .ldc = probs.stride()}});
  ParallelBlocks(ctx, tokens, RowsPerBlock(n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = probs.as<float>() + t * probs.stride();
      SoftmaxRow(row, bias, n);
      ChooseExperts(weights.as<float>() + t * weights.stride(),
                    experts.as<int32_t>() + t * experts.stride(), row, n, k);
    }
  });
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
  ArenaScope scope(ctx.scratch);
  float* dlogits =
      static_cast<float*>(ctx.scratch->Take(static_cast<size_t>(tokens * n) * sizeof(float)));
  const float* all = dprobs_all.empty() ? nullptr : dprobs_all.as<float>();
  const RowPartials bias_gradient(ctx, tokens, n);
  bias_gradient.Run(ctx, [&](int64_t begin, int64_t end, float* sum) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = dlogits + t * n;
      RowGradient(row, dweights.as<float>() + t * dweights.stride(), all,
                  probs.as<float>() + t * probs.stride(),
                  weights.as<float>() + t * weights.stride(),
                  experts.as<int32_t>() + t * experts.stride(), n, k);
      for (int64_t e = 0; e < n; ++e) sum[e] += row[e];
    }
  });
  bias_gradient.AddTo(ctx, db.as<float>());
  const Tensor wide_x = Widened(ctx, x), wide_w = Widened(ctx, w), wide_dx = WideTarget(ctx, dx);
  Gemm(ctx, {{.m = tokens,
              .n = d,
              .k = n,
              .a = dlogits,
              .lda = n,
              .b = wide_w.as<float>(),
              .ldb = wide_w.stride(),
              .c = wide_dx.as<float>(),
              .ldc = wide_dx.stride()},
             {.m = n,
              .n = d,
              .k = tokens,
              .a = dlogits,
              .lda = n,
              .a_transposed = true,
              .b = wide_x.as<float>(),
              .ldb = wide_x.stride(),
              .c = dw.as<float>(),
              .ldc = dw.stride(),
              .accumulate = true}});
  NarrowInto(ctx, dx, wide_dx);
}

void RouterStatistics(const Context& ctx, Tensor prob_sums, Tensor counts, Tensor probs,
                      Tensor experts) {
  const int64_t tokens = probs.dim(0), n = prob_sums.dim(0), k = experts.row_numel();
  CheckShape("probs", probs, tokens, n);
  CheckShape("experts", experts, tokens, k);
  CheckShape("counts", counts, n, 1);
  double* sums = prob_sums.as<double>();
  int64_t* count = counts.as<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = probs.as<float>() + t * probs.stride();
    const int32_t* chosen = experts.as<int32_t>() + t * experts.stride();
    for (int64_t e = 0; e < n; ++e) sums[e] += static_cast<double>(row[e]);
    for (int64_t j = 0; j < k; ++j) ++count[chosen[j]];
  }
}

}  // namespace ela::kernels::cpu
