// The backward pass on Hopper around its kernel (hopper_gradients.cu): lse and delta head by head
// before it, the sums of dq into dq after it.
#include <algorithm>
#include <cmath>

#include "kernels/device_code.cuh"
#include "kernels/hopper.h"
#include "kernels/softmax_attention/hopper_backward.cuh"

namespace ela::kernels::cuda::softmax {
namespace {

/// lse and delta of rows of one head side by side; of rows past the end, and of those that met
/// nothing, such that weights come out as 0.
__global__ void PackStatistics(float2* to, const float* lse, const float* delta, int rows,
                               int padded, int heads) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= int64_t{padded} * heads) return;
  const int64_t row = i / heads, head = i % heads;
  float2 pair = {INFINITY, 0.0f};
  if (row < rows && lse[i] != -INFINITY) pair = {lse[i] * kLog2E, delta[i]};
  to[head * padded + row] = pair;
}

/// dq += scale sums, by a block a tile and head, in the layout of StoreSums.
template <int kDim>
__global__ void AddQueryGradients(const __grid_constant__ BackwardArgs p) {
  constexpr int kRows = BackwardSize<kDim>::kQueryRows;
  const int tile = static_cast<int>(blockIdx.x) / p.heads;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  if (p.spans[tile].count == 0) return;
  const int group = static_cast<int>(threadIdx.x) / 128,
            thread = static_cast<int>(threadIdx.x) % 128;
  const auto* from = reinterpret_cast<const float4*>(p.sums) +
                     int64_t{blockIdx.x} * (kRows * kDim / 4) + group * 1024 + thread;
  const int first_row = (kDim == 64 ? 64 * group : 0) + thread / 32 * 16 + thread % 32 / 4;
  const int64_t row = int64_t{tile} * kRows + first_row;
  const int64_t column = int64_t{head} * kDim + (kDim == 64 ? 0 : 64 * group) + thread % 4 * 2;
  float4 sums[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) sums[j] = from[128 * j];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r >= p.queries.total) continue;
    float2 was[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) was[j] = p.dq.Pair(row + 8 * r, column + 8 * j);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 d =
          r == 0 ? make_float2(sums[j].x, sums[j].y) : make_float2(sums[j].z, sums[j].w);
      p.dq.SetPair(row + 8 * r, column + 8 * j, fmaf(d.x, p.scale, was[j].x),
                   fmaf(d.y, p.scale, was[j].y));
    }
  }
}

template <int kDim>
void LaunchBackward(const Context& ctx, BackwardArgs p, const HopperBackward& op,
                    const RowPlaces& queries, const RowPlaces& keys) {
  using Size = BackwardSize<kDim>;
  cudaStream_t stream = StreamOf(ctx);
  p.queries = MakeTiles(ctx, queries, Size::kQueryRows, /*queries=*/true);
  p.keys = MakeTiles(ctx, keys, kKeyRows, /*queries=*/false);
  p.spans = FindSpans(ctx, p.queries, p.keys, p.causal);
  p.key_spans = InvertSpans(ctx, p.spans, p.queries, p.keys);
  const int64_t padded = int64_t{p.queries.count} * Size::kQueryRows;
  const int64_t tiles = int64_t{p.queries.count} * p.heads;
  auto* statistics = TakeScratch<float2>(ctx, padded * p.heads);
  PackStatistics<<<GridSize(CeilDiv(padded * p.heads, kBlock)), kBlock, 0, stream>>>(
      statistics, op.lse.as<float>(), op.delta.as<float>(), p.queries.total,
      static_cast<int>(padded), p.heads);
  CheckLaunch("PackStatistics");
  p.statistics = statistics;
  p.sums = TakeScratch<float>(ctx, padded * p.heads * kDim);
  p.next = TakeScratch<int>(ctx, 1 + tiles);
  p.turns = p.next + 1;
  ELA_CUDA_CHECK(cudaMemsetAsync(p.next, 0, static_cast<size_t>(1 + tiles) * sizeof(int), stream));
  p.q = TensorMapOf(op.q, Size::kQueryRows);
  p.dy = TensorMapOf(op.dy, Size::kQueryRows);
  LaunchGradients<kDim>(ctx, p);
  AddQueryGradients<kDim><<<GridSize(tiles), 256, 0, stream>>>(p);
  CheckLaunch("AddQueryGradients");
}

}  // namespace

void RunHopperBackward(const Context& ctx, const HopperBackward& op, const RowPlaces& queries,
                       const RowPlaces& keys, const SoftmaxAttentionConfig& config) {
  const ArenaScope scope(ctx.scratch);
  BackwardArgs p = {};
  p.k = TensorMapOf(op.k, kKeyRows);
  p.v = TensorMapOf(op.v, kKeyRows);
  p.dq = Gradient(op.dq);
  p.dk = Gradient(op.dk);
  p.dv = Gradient(op.dv);
  p.heads = static_cast<int>(config.num_heads);
  // What few heads read and add to stays in L2; but more of their tiles of keys wait for each
  // other, which costs more where tiles of queries are large.
  p.heads_together = config.head_dim == 64 ? p.heads : std::min(p.heads, 8);
  p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config.head_dim)));
  p.scale_log2 = p.scale * kLog2E;
  p.causal = config.causal;
  if (config.head_dim == 64) {
    LaunchBackward<64>(ctx, p, op, queries, keys);
  } else {
    LaunchBackward<128>(ctx, p, op, queries, keys);
  }
}

}  // namespace ela::kernels::cuda::softmax
