// What kernels share: elements as float, 16-byte accesses, sums of a warp and a block in a fixed
// order.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "kernels/cuda_support.h"
#include "kernels/rows.h"

/// In a kernel: a programmer error of the caller (an index outside its table) ends the process.
#define ELA_DEVICE_CHECK(condition, ...)               \
  do {                                                 \
    if (!(condition)) [[unlikely]] {                   \
      printf("check failed: " #condition __VA_ARGS__); \
      __trap();                                        \
    }                                                  \
  } while (false)

namespace ela::kernels::cuda {

using bf16 = __nv_bfloat16;
inline constexpr int kWarp = 32;
inline constexpr int kBlock = 256;
inline constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct DeviceType;
template <>
struct DeviceType<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DeviceType<bf16> {
  static constexpr DType value = DType::kBf16;
};

/// The elements of x as the device sees them; checks the type.
template <class T>
T* DataOf(const Tensor& x) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, bf16>) {
    ELA_CHECK(x.dtype() == DType::kBf16, "dtype %d", static_cast<int>(x.dtype()));
    return static_cast<T*>(x.data());
  } else {
    return x.as<T>();
  }
}

/// Rows of a tensor that may be strided.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  Rows() = default;
  Rows(T* first, int64_t elements) : data(first), stride(elements) {}
  explicit Rows(const Tensor& x) : data(DataOf<T>(x)), stride(x.stride()) {}
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};

/// run(T()) with T float or bf16, the element type that all `tensors` must share.
template <class Run, class... Tensors>
void WithElement(const Run& run, const Tensor& first, const Tensors&... tensors) {
  for (const Tensor* t : {&first, &tensors...}) {
    ELA_CHECK(t->dtype() == first.dtype(), "mixed element types %d and %d",
              static_cast<int>(first.dtype()), static_cast<int>(t->dtype()));
  }
  if (first.dtype() == DType::kBf16) {
    run(bf16());
  } else {
    run(float());
  }
}

/// Elements of one 16-byte access.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

/// Whether every row of x (of `columns` elements) starts and ends at a multiple of 16 bytes.
inline bool IsVectorised(const Tensor& x) {
  const size_t n = 16 / SizeOf(x.dtype());
  return reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 &&
         static_cast<size_t>(x.row_numel()) % n == 0 &&
         (x.dim(0) <= 1 || static_cast<size_t>(x.stride()) % n == 0);
}

/// run(T(), std::integral_constant<int, N>()), N elements an access: 16 bytes' worth, or 1 where
/// some tensor's rows are not aligned.
template <class Run, class... Tensors>
void WithVectors(const Run& run, const Tensors&... tensors) {
  const bool vectors = (IsVectorised(tensors) && ...);
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        if (vectors) {
          run(element, std::integral_constant<int, kVector<T>>());
        } else {
          run(element, std::integral_constant<int, 1>());
        }
      },
      tensors...);
}

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ inline void Store(float* to, float x) { *to = x; }
__device__ inline void Store(bf16* to, float x) { *to = __float2bfloat16(x); }

/// N consecutive elements as floats, by one access; N is 1 or kVector<T>.
template <int N, class T>
__device__ inline void Load(float (&values)[N], const T* from) {
  if constexpr (N == 1) {
    values[0] = ToFloat(*from);
  } else {
    static_assert(N == kVector<T>);
    union {
      uint4 bits;
      T elements[N];
    } u;
    u.bits = *reinterpret_cast<const uint4*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = ToFloat(u.elements[i]);
  }
}

template <int N, class T>
__device__ inline void StoreAll(T* to, const float (&values)[N]) {
  if constexpr (N == 1) {
    Store(to, values[0]);
  } else {
    static_assert(N == kVector<T>);
    union U {
      uint4 bits;
      T elements[N];
      __device__ U() {}
    } u;
#pragma unroll
    for (int i = 0; i < N; ++i) Store(&u.elements[i], values[i]);
    *reinterpret_cast<uint4*>(to) = u.bits;
  }
}

/// Every lane gets the sum; the order is that of a butterfly.
template <class T>
__device__ inline T WarpSum(T x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  }
  return x;
}

/// The sum over a block of at most 1024 threads (a multiple of 32), for every thread. `shared`:
/// 32 values, free again after the call's own barriers.
template <class T>
__device__ inline T BlockSum(T x, T* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  x = WarpSum(x);
  __syncthreads();
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return WarpSum(lane < warps ? shared[lane] : T(0));
}

/// out [columns] += the sums of the columns of partials [rows, columns], in a fixed order.
void AddColumnSums(const Context& ctx, float* out, const float* partials, int64_t rows,
                   int64_t columns);

}  // namespace ela::kernels::cuda
