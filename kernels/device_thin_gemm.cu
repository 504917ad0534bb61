// c = a b^T (+ added) for few rows of a, as decoding has them: each row of b is read once, by
// a warp, and meets all of a's, which the caches hold. Every sum is of one warp in one order.
#include "kernels/device_gemm.h"
#include "kernels/early_launch.cuh"
#include "kernels/thin_product.cuh"

namespace ela::kernels::cuda {
namespace {

constexpr int kWarps = kBlock / kWarp;
constexpr int kMostRows = 8;      // of float
constexpr int kMostBf16Rows = 2;  // more are faster on tensor cores

/// By a whole warp, into the cache of the device.
template <class T>
__device__ void Prefetch(const T* row, int columns) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  for (int i = static_cast<int>(threadIdx.x) % kWarp * kLine; i < columns; i += kWarp * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + i));
  }
}

template <class T, class C, int N, int kCount>
__global__ void ThinProduct(Rows<C> c, Rows<const C> added, Rows<const T> a, Rows<const T> b, int m,
                            int64_t n, int k) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  LetNextStart();
  if (row < n) Prefetch(b[row], k);  // weights, as a rule; the cache is the same for all
  AwaitEarlier();
  if (row >= n) return;
  const T* from[kCount];
#pragma unroll
  for (int s = 0; s < kCount; ++s) from[s] = a[min(s, m - 1)];
  float sum[kCount];
  DotRows<T, N>(sum, b[row], from, k);
  if (threadIdx.x % kWarp != 0) return;
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    if (s >= m) break;
    if (added.data != nullptr) sum[s] += ToFloat(added[s][row]);
    Store(c[s] + row, sum[s]);
  }
}

template <class T, class C, int N>
void Launch(const Context& ctx, const DeviceGemm& p) {
  const Rows<C> c(static_cast<C*>(p.c), p.ldc);
  const Rows<const C> added(static_cast<const C*>(p.added), p.ld_added);
  const Rows<const T> a(static_cast<const T*>(p.a), p.lda), b(static_cast<const T*>(p.b), p.ldb);
  const auto kernel = p.m == 1   ? ThinProduct<T, C, N, 1>
                      : p.m == 2 ? ThinProduct<T, C, N, 2>
                      : p.m <= 4 ? ThinProduct<T, C, N, 4>
                                 : ThinProduct<T, C, N, kMostRows>;
  LaunchEarly(ctx, p.m, kernel, dim3(GridSize(CeilDiv(p.n, kWarps))), kBlock, c, added, a, b,
              static_cast<int>(p.m), p.n, static_cast<int>(p.k));
  CheckLaunch("ThinProduct");
}

template <class T, class C>
void LaunchAligned(const Context& ctx, const DeviceGemm& p) {
  const auto aligned = [&](const void* data, int64_t ld) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && ld % kVector<T> == 0;
  };
  if (aligned(p.a, p.lda) && aligned(p.b, p.ldb) && p.k % kVector<T> == 0) {
    Launch<T, C, kVector<T>>(ctx, p);
  } else {
    Launch<T, C, 1>(ctx, p);
  }
}

}  // namespace

bool ThinGemm(const Context& ctx, const DeviceGemm& p) {
  const bool thin = p.m <= (p.input == DType::kF32 ? kMostRows : kMostBf16Rows) &&
                    !p.a_transposed && p.b_transposed;
  if (!thin || p.k > INT32_MAX) return false;
  if (p.input == DType::kF32) {
    LaunchAligned<float, float>(ctx, p);
  } else if (p.output == DType::kF32) {
    LaunchAligned<bf16, float>(ctx, p);
  } else {
    LaunchAligned<bf16, bf16>(ctx, p);
  }
  return true;
}

}  // namespace ela::kernels::cuda
