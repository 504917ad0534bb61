// Logits exist one tile of rows at a time, in float; their gradients, in the type of x, in a tile
// of several times as many rows (tiles.h), which meets the table and x in two products. Three
// products in all; scratch: both tiles and 8 bytes a row. x, dx and table are of one type, dtable
// float.
#include "kernels/device_code.cuh"
#include "kernels/device_gemm.h"
#include "kernels/loss/cuda_rows.h"
#include "kernels/loss/loss.h"
#include "kernels/loss/tiles.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kAddThreads = 512;

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

/// Logits of the rows x, then their losses and, unless null, gradients [rows, stride].
void LossOfTile(const Context& ctx, double* loss, void* gradients, float* logits, const Tensor& x,
                const Tensor& table, const int32_t* targets, double scale, int64_t stride) {
  const int64_t rows = x.dim(0), n = table.dim(0);
  Gemm(ctx, {.m = rows,
             .n = n,
             .k = x.row_numel(),
             .a = x.data(),
             .lda = x.stride(),
             .b = table.data(),
             .ldb = table.stride(),
             .b_transposed = true,
             .c = logits,
             .ldc = stride,
             .input = x.dtype()});
  RunLossOfRows(ctx, loss, gradients, logits, targets, rows, n, stride, scale, x.dtype());
}

/// visit(gradients, loss, begin, end) after rows [begin, end), a tile of gradients, have their
/// losses and, if `wanted`, the gradients of their logits: rows of tiles.stride elements of the
/// type of x.
template <class Visit>
void ForEachTile(const Context& ctx, const Tensor& x, const Tensor& table, const Tensor& targets,
                 double scale, const LossTiles& tiles, bool wanted, const Visit& visit) {
  const int64_t tokens = x.dim(0), n = table.dim(0);
  CheckShape("targets", targets, tokens, 1);
  CheckShape("table", table, n, x.row_numel());
  ELA_CHECK(table.dtype() == x.dtype(), "x of dtype %d, the table of %d",
            static_cast<int>(x.dtype()), static_cast<int>(table.dtype()));
  if (tokens == 0) return;
  const ArenaScope scope(ctx.scratch);
  const int64_t row_bytes = tiles.stride * static_cast<int64_t>(SizeOf(x.dtype()));
  float* logits = TakeScratch<float>(ctx, tiles.logit_rows * tiles.stride);
  char* gradients = wanted ? TakeScratch<char>(ctx, tiles.gradient_rows * row_bytes) : nullptr;
  double* loss = TakeScratch<double>(ctx, tiles.gradient_rows);
  for (int64_t begin = 0; begin < tokens; begin += tiles.gradient_rows) {
    const int64_t end = std::min(tokens, begin + tiles.gradient_rows);
    for (int64_t first = begin; first < end; first += tiles.logit_rows) {
      const Tensor rows = x.Rows(first, std::min(end, first + tiles.logit_rows));
      LossOfTile(ctx, loss + (first - begin),
                 wanted ? gradients + (first - begin) * row_bytes : nullptr, logits, rows, table,
                 targets.as<int32_t>() + first, scale, tiles.stride);
    }
    visit(gradients, loss, begin, end);
  }
}

LossTiles TilesFor(const Tensor& x, const Tensor& table) {
  ELA_CHECK(table.dim(0) > 0, "an empty vocabulary");
  return LossTilesFor(x.dim(0), table.dim(0), static_cast<int64_t>(SizeOf(x.dtype())));
}

}  // namespace

void LossByTiles(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                 Tensor table, Tensor targets, double scale, const LossTiles& tiles) {
  if (!dx.empty()) CheckShape("dx", dx, x.dim(0), x.row_numel());
  if (!dtable.empty()) CheckShape("dtable", dtable, table.dim(0), table.row_numel());
  const int64_t n = table.dim(0), d = x.row_numel();
  const auto products = [&](const void* gradients, double* loss, int64_t begin, int64_t end) {
    AddLosses<<<1, kAddThreads, 0, StreamOf(ctx)>>>(loss_sum.as<double>(), loss, end - begin);
    CheckLaunch("AddLosses");
    if (!dx.empty()) {
      const Tensor out = dx.Rows(begin, end);
      Gemm(ctx, {.m = end - begin,
                 .n = d,
                 .k = n,
                 .a = gradients,
                 .lda = tiles.stride,
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
                 .a = gradients,
                 .lda = tiles.stride,
                 .a_transposed = true,
                 .b = part.data(),
                 .ldb = part.stride(),
                 .c = dtable.as<float>(),
                 .ldc = dtable.stride(),
                 .added = dtable.as<float>(),
                 .ld_added = dtable.stride(),
                 .input = x.dtype()});
    }
  };
  const bool wanted = !dx.empty() || !dtable.empty();
  ForEachTile(ctx, x, table, targets, scale, tiles, wanted, products);
}

void LossForwardBackward(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                         Tensor table, Tensor targets, double scale) {
  LossByTiles(ctx, loss_sum, dx, dtable, x, table, targets, scale, TilesFor(x, table));
}

void TokenLogprobs(const Context& ctx, Tensor logprob, Tensor x, Tensor table, Tensor targets) {
  CheckShape("logprob", logprob, x.dim(0), 1);
  ForEachTile(ctx, x, table, targets, 0, TilesFor(x, table), /*wanted=*/false,
              [&](const void*, double* loss, int64_t begin, int64_t end) {
                NegateLosses<<<GridSize(CeilDiv(end - begin, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
                    logprob.as<float>() + begin, loss, end - begin);
                CheckLaunch("NegateLosses");
              });
}

}  // namespace ela::kernels::cuda
