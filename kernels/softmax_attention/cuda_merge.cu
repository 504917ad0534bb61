// Merging two partial results: a warp a (row, head); y is read and written once, part_y read once.
#include "kernels/device_code.cuh"
#include "kernels/softmax_attention/softmax_attention.h"

namespace ela::kernels::cuda {
namespace {

template <class T>
__global__ void MergeHeads(Rows<T> y, Rows<float> lse, Rows<const T> part_y,
                           Rows<const float> part_lse, int64_t rows, int heads, int d) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (warp >= rows * heads) return;
  const int64_t row = warp / heads, head = warp % heads;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float mine = lse[row][head], other = part_lse[row][head];
  if (other == -INFINITY) return;
  const float largest = fmaxf(mine, other);
  const float before = expf(mine - largest), more = expf(other - largest);
  const float share = more / (before + more);
  T* out = y[row] + head * d;
  const T* part = part_y[row] + head * d;
  for (int c = lane; c < d; c += kWarp) {
    const float value = ToFloat(out[c]);
    Store(out + c, value + share * (ToFloat(part[c]) - value));
  }
  __syncwarp();  // every lane has read lse
  if (lane == 0) lse[row][head] = largest + logf(before + more);
}

}  // namespace

void SoftmaxAttentionMerge(const Context& ctx, Tensor y, Tensor lse, Tensor part_y,
                           Tensor part_lse) {
  const int64_t rows = y.dim(0), heads = y.dim(1), d = y.dim(2);
  CheckShape("part_y", part_y, rows, heads * d);
  CheckShape("lse", lse, rows, heads);
  CheckShape("part_lse", part_lse, rows, heads);
  if (rows == 0) return;
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        const int64_t warps_per_block = kBlock / kWarp;
        MergeHeads<T>
            <<<GridSize(CeilDiv(rows * heads, warps_per_block)), kBlock, 0, StreamOf(ctx)>>>(
                Rows<T>(y), Rows<float>(lse), Rows<const T>(part_y), Rows<const float>(part_lse),
                rows, static_cast<int>(heads), static_cast<int>(d));
      },
      y, part_y);
  CheckLaunch("MergeHeads");
}

}  // namespace ela::kernels::cuda
