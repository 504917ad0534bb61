// Products of few rows: what they take is the reading of the matrix. A warp a row of the matrix,
// four accesses of a lane on their way at a time.
#pragma once

#include "kernels/device_code.cuh"

namespace ela::kernels::cuda {

/// sum[s] = matrix_row . from[s], each [columns], of every lane; by a whole warp, N elements an
/// access. The order of a sum depends on N alone.
template <class T, int N, int kCount>
__device__ void DotRows(float (&sum)[kCount], const T* matrix_row, const T* const (&from)[kCount],
                        int columns) {
  constexpr int kAhead = 4, kStep = kWarp * N;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int s = 0; s < kCount; ++s) sum[s] = 0;
  for (int first = lane * N; first < columns; first += kAhead * kStep) {
    float a[kAhead][N];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kStep < columns) Load(a[i], matrix_row + first + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kStep >= columns) break;
#pragma unroll
      for (int s = 0; s < kCount; ++s) {
        float b[N];
        Load(b, from[s] + first + i * kStep);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[s] = fmaf(a[i][j], b[j], sum[s]);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kCount; ++s) sum[s] = WarpSum(sum[s]);
}

}  // namespace ela::kernels::cuda
