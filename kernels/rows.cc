#include "kernels/rows.h"

#include "kernels/parallel.h"

namespace ela::kernels {
namespace {

Tensor FloatScratch(const Context& ctx, const Tensor& like) {
  const size_t bytes = static_cast<size_t>(like.numel()) * sizeof(float);
  return Tensor::Of(static_cast<float*>(ctx.scratch->Take(bytes)), {like.dim(0), like.row_numel()});
}

}  // namespace

Tensor Widened(const Context& ctx, const Tensor& x) {
  if (IsFloat(x)) return x;
  const Tensor wide = FloatScratch(ctx, x);
  const int64_t n = x.row_numel();
  ParallelBlocks(ctx, x.dim(0), RowsPerBlock(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      Widen(wide.as<float>() + r * n, x.as<Bf16>() + r * x.stride(), n);
  });
  return wide;
}

Tensor WideTarget(const Context& ctx, const Tensor& y) {
  return IsFloat(y) ? y : FloatScratch(ctx, y);
}

void NarrowInto(const Context& ctx, const Tensor& y, const Tensor& wide) {
  if (IsFloat(y)) return;
  const int64_t n = y.row_numel();
  ParallelBlocks(ctx, y.dim(0), RowsPerBlock(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      Narrow(y.as<Bf16>() + r * y.stride(), wide.as<float>() + r * n, n);
  });
}

}  // namespace ela::kernels
