// h = silu(g) u: each element read once and written once. All tensors are of one type.
#include "kernels/device_code.cuh"
#include "kernels/early_launch.cuh"
#include "kernels/swiglu/swiglu.h"

namespace ela::kernels::cuda {
namespace {

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// body(row, column) for the first of every N of `width` columns of each row.
template <int N, class Body>
__device__ void ForEachVector(int64_t rows, int64_t width, const Body& body) {
  const int64_t vectors = width / N;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; i < rows * vectors;
       i += static_cast<int64_t>(gridDim.x) * kBlock) {
    const int64_t row = i / vectors;
    body(row, (i - row * vectors) * N);
  }
}

template <class T, int N>
__global__ void GateRows(Rows<T> h, Rows<T> gu, int64_t rows, int64_t width) {
  StartEarly();
  ForEachVector<N>(rows, width, [&](int64_t row, int64_t column) {
    float g[N], u[N];
    Load(g, gu[row] + column);
    Load(u, gu[row] + width + column);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = g[i] * Sigmoid(g[i]) * u[i];
    StoreAll(h[row] + column, g);
  });
}

template <class T, int N>
__global__ void GateRowsBackward(Rows<T> dgu, Rows<T> dh, Rows<T> gu, int64_t rows, int64_t width) {
  ForEachVector<N>(rows, width, [&](int64_t row, int64_t column) {
    float g[N], u[N], grad[N];
    Load(g, gu[row] + column);
    Load(u, gu[row] + width + column);
    Load(grad, dh[row] + column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float sigmoid = Sigmoid(g[i]), gate = g[i], value = u[i];
      g[i] = grad[i] * value * sigmoid * (1.0f + gate * (1.0f - sigmoid));
      u[i] = grad[i] * gate * sigmoid;
    }
    StoreAll(dgu[row] + column, g);
    StoreAll(dgu[row] + width + column, u);
  });
}

unsigned BlocksFor(int64_t items) {
  return GridSize(std::min<int64_t>(8192, CeilDiv(items, kBlock)));
}

}  // namespace

void SwigluForward(const Context& ctx, Tensor h, Tensor gu) {
  const int64_t rows = h.dim(0), width = h.row_numel();
  CheckShape("gu", gu, rows, 2 * width);
  if (h.numel() == 0) return;
  // The second half of a row must be aligned too.
  const Tensor g = gu.Columns(0, width), u = gu.Columns(width, 2 * width);
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        LaunchEarly(ctx, rows, GateRows<T, n>, dim3(BlocksFor(rows * width / n)), kBlock,
                    Rows<T>(h), Rows<T>(gu), rows, width);
      },
      h, g, u);
  CheckLaunch("GateRows");
}

void SwigluBackward(const Context& ctx, Tensor dgu, Tensor dh, Tensor gu) {
  const int64_t rows = dh.dim(0), width = dh.row_numel();
  CheckShape("gu", gu, rows, 2 * width);
  CheckShape("dgu", dgu, rows, 2 * width);
  if (dh.numel() == 0) return;
  const Tensor g = gu.Columns(0, width), u = gu.Columns(width, 2 * width);
  const Tensor dg = dgu.Columns(0, width), du = dgu.Columns(width, 2 * width);
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        GateRowsBackward<T, n><<<BlocksFor(rows * width / n), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(dgu), Rows<T>(dh), Rows<T>(gu), rows, width);
      },
      dh, g, u, dg, du);
  CheckLaunch("GateRowsBackward");
}

}  // namespace ela::kernels::cuda
