#include "kernels/device_code.cuh"

namespace ela::kernels::cuda {
namespace {

constexpr int kRowLanes = 32;

/// A block sums 32 columns: thread (x, y) every 32nd row from y, then the 32 sums in order.
__global__ void ColumnSums(float* out, const float* partials, int64_t rows, int64_t columns) {
  __shared__ float sums[kRowLanes][kWarp + 1];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  float sum = 0;
  if (column < columns) {
    for (int64_t r = threadIdx.y; r < rows; r += kRowLanes) sum += partials[r * columns + column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int y = 1; y < kRowLanes; ++y) sum += sums[y][threadIdx.x];
  out[column] += sum;
}

}  // namespace

void AddColumnSums(const Context& ctx, float* out, const float* partials, int64_t rows,
                   int64_t columns) {
  if (rows == 0 || columns == 0) return;
  ColumnSums<<<GridSize(CeilDiv(columns, kWarp)), dim3(kWarp, kRowLanes), 0, StreamOf(ctx)>>>(
      out, partials, rows, columns);
  CheckLaunch("ColumnSums");
}

}  // namespace ela::kernels::cuda
