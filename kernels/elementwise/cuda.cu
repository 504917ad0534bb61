// y = a + b and its kin: each element read once and written once, 16 bytes a thread where rows
// allow it. Copy also moves equal types of any kind and converts between float and bf16; the other
// ops take tensors of one type.
#include <cstring>

#include "kernels/device_code.cuh"
#include "kernels/elementwise/elementwise.h"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;

unsigned BlocksFor(int64_t items) {
  return GridSize(std::min(kMostBlocks, CeilDiv(items, kBlock)));
}

/// Elements as [rows, columns]; a dense tensor counts as one row.
struct Shape {
  int64_t rows, columns;
};

/// body(row, column) for the first of every N elements.
template <int N, class Body>
__device__ void ForEachVector(Shape shape, const Body& body) {
  const int64_t vectors = shape.columns / N, all = shape.rows * vectors;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; i < all;
       i += static_cast<int64_t>(gridDim.x) * kBlock) {
    const int64_t row = shape.rows == 1 ? 0 : i / vectors;
    body(row, (i - row * vectors) * N);
  }
}

template <class T, int N>
__global__ void AddRows(Rows<T> y, Rows<T> a, Rows<T> b, Shape shape) {
  ForEachVector<N>(shape, [&](int64_t row, int64_t column) {
    float left[N], right[N];
    Load(left, a[row] + column);
    Load(right, b[row] + column);
#pragma unroll
    for (int i = 0; i < N; ++i) left[i] += right[i];
    StoreAll(y[row] + column, left);
  });
}

template <class T, int N>
__global__ void ScaleRows(Rows<T> x, float factor, Shape shape) {
  ForEachVector<N>(shape, [&](int64_t row, int64_t column) {
    float values[N];
    Load(values, x[row] + column);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= factor;
    StoreAll(x[row] + column, values);
  });
}

template <class Y, class X>
__global__ void ConvertRows(Rows<Y> y, Rows<X> x, Shape shape) {
  ForEachVector<1>(
      shape, [&](int64_t row, int64_t column) { Store(y[row] + column, ToFloat(x[row][column])); });
}

template <class Bits>
__global__ void FillRows(Bits* x, int64_t stride, Bits bits, Shape shape) {
  ForEachVector<1>(shape, [&](int64_t row, int64_t column) { x[row * stride + column] = bits; });
}

/// A column and its number; column -1: none yet.
struct Candidate {
  float value;
  int column;

  /// The larger of the two, the lower column of equals.
  __device__ void Meet(float other, int at) {
    const bool better = column < 0 || other > value || (other == value && at < column);
    if (at < 0 || !better) return;
    value = other;
    column = at;
  }
  __device__ void MeetLanes() {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, value, lanes);
      Meet(other, __shfl_xor_sync(kAllLanes, column, lanes));
    }
  }
};

/// A block a row.
template <class T, int N>
__global__ void FindLargest(Rows<int32_t> index, Rows<T> x, int columns) {
  __shared__ Candidate of_warp[kBlock / kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Candidate best = {0, -1};
  for (int i = static_cast<int>(threadIdx.x) * N; i < columns; i += kBlock * N) {
    float values[N];
    Load(values, x[blockIdx.x] + i);
#pragma unroll
    for (int j = 0; j < N; ++j) best.Meet(values[j], isnan(values[j]) ? -1 : i + j);
  }
  best.MeetLanes();
  if (lane == 0) of_warp[warp] = best;
  __syncthreads();
  if (warp != 0) return;
  best = lane < kBlock / kWarp ? of_warp[lane] : Candidate{0, -1};
  best.MeetLanes();
  if (lane == 0) *index[blockIdx.x] = max(best.column, 0);
}

/// A warp a (row, head).
template <class T, int N>
__global__ void DotHeads(Rows<float> dots, Rows<T> a, Rows<T> b, int64_t rows, int heads, int d) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (warp >= rows * heads) return;
  const int64_t row = warp / heads, head = warp % heads;
  const T* left = a[row] + head * d;
  const T* right = b[row] + head * d;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarp * N; i < d; i += kWarp * N) {
    float x[N], y[N];
    Load(x, left + i);
    Load(y, right + i);
#pragma unroll
    for (int j = 0; j < N; ++j) sum = fmaf(x[j], y[j], sum);
  }
  sum = WarpSum(sum);
  if (threadIdx.x % kWarp == 0) dots[row][head] = sum;
}

/// One row where every tensor is dense.
template <class... Tensors>
void Flatten(Tensors&... tensors) {
  if (!(tensors.dense() && ...)) return;
  ((tensors = tensors.View({1, tensors.numel()})), ...);
}

template <class Bits, class Value>
void FillBits(const Context& ctx, const Tensor& x, Value value) {
  Bits bits;
  static_assert(sizeof bits == sizeof value);
  std::memcpy(&bits, &value, sizeof bits);
  FillRows<<<BlocksFor(x.numel()), kBlock, 0, StreamOf(ctx)>>>(
      static_cast<Bits*>(x.data()), x.stride(), bits, Shape{x.dim(0), x.row_numel()});
  CheckLaunch("FillRows");
}

}  // namespace

void Add(const Context& ctx, Tensor y, Tensor a, Tensor b) {
  CheckShape("a", a, y.dim(0), y.row_numel());
  CheckShape("b", b, y.dim(0), y.row_numel());
  if (y.numel() == 0) return;
  Flatten(y, a, b);
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        AddRows<T, n><<<BlocksFor(y.numel() / n), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(y), Rows<T>(a), Rows<T>(b), Shape{y.dim(0), y.row_numel()});
      },
      y, a, b);
  CheckLaunch("AddRows");
}

void Fill(const Context& ctx, Tensor x, double value) {
  if (x.numel() == 0) return;
  Flatten(x);
  switch (x.dtype()) {
    case DType::kF32:
      return FillBits<uint32_t>(ctx, x, static_cast<float>(value));
    case DType::kBf16:
      return FillBits<uint16_t>(ctx, x, Bf16(static_cast<float>(value)).bits);
    case DType::kF64:
      return FillBits<uint64_t>(ctx, x, value);
    case DType::kI32:
      return FillBits<uint32_t>(ctx, x, static_cast<int32_t>(value));
    case DType::kI64:
      return FillBits<uint64_t>(ctx, x, static_cast<int64_t>(value));
  }
}

void Copy(const Context& ctx, Tensor y, Tensor x) {
  CheckShape("x", x, y.dim(0), y.row_numel());
  if (y.numel() == 0) return;
  Flatten(y, x);
  const Shape shape{y.dim(0), y.row_numel()};
  if (x.dtype() == y.dtype()) {
    if (x.data() == y.data()) return;
    const size_t size = SizeOf(x.dtype()), row_bytes = static_cast<size_t>(shape.columns) * size;
    if (shape.rows == 1) {
      ELA_CUDA_CHECK(
          cudaMemcpyAsync(y.data(), x.data(), row_bytes, cudaMemcpyDeviceToDevice, StreamOf(ctx)));
      return;
    }
    ELA_CUDA_CHECK(cudaMemcpy2DAsync(y.data(), static_cast<size_t>(y.stride()) * size, x.data(),
                                     static_cast<size_t>(x.stride()) * size, row_bytes,
                                     static_cast<size_t>(shape.rows), cudaMemcpyDeviceToDevice,
                                     StreamOf(ctx)));
    return;
  }
  const unsigned blocks = BlocksFor(y.numel());
  if (y.dtype() == DType::kBf16) {
    ConvertRows<<<blocks, kBlock, 0, StreamOf(ctx)>>>(Rows<bf16>(y), Rows<float>(x), shape);
  } else {
    ConvertRows<<<blocks, kBlock, 0, StreamOf(ctx)>>>(Rows<float>(y), Rows<bf16>(x), shape);
  }
  CheckLaunch("ConvertRows");
}

void Scale(const Context& ctx, Tensor x, double factor) {
  if (x.numel() == 0) return;
  Flatten(x);
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        ScaleRows<T, n><<<BlocksFor(x.numel() / n), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(x), static_cast<float>(factor), Shape{x.dim(0), x.row_numel()});
      },
      x);
  CheckLaunch("ScaleRows");
}

void RowArgmax(const Context& ctx, Tensor index, Tensor x) {
  CheckShape("index", index, x.dim(0), 1);
  if (x.dim(0) == 0) return;
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        FindLargest<T, n><<<GridSize(x.dim(0)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<int32_t>(index), Rows<T>(x), static_cast<int>(x.row_numel()));
      },
      x);
  CheckLaunch("FindLargest");
}

void RowDots(const Context& ctx, Tensor dots, Tensor a, Tensor b) {
  const int64_t rows = dots.dim(0), heads = dots.row_numel();
  if (rows == 0) return;
  const int64_t d = a.row_numel() / heads;
  CheckShape("a", a, rows, heads * d);
  CheckShape("b", b, rows, heads * d);
  const bool aligned = d % kVector<bf16> == 0;  // every head starts at a multiple of 16 bytes
  const auto launch = [&](auto element, auto n) {
    using T = decltype(element);
    DotHeads<T, n><<<GridSize(CeilDiv(rows * heads, kBlock / kWarp)), kBlock, 0, StreamOf(ctx)>>>(
        Rows<float>(dots), Rows<T>(a), Rows<T>(b), rows, static_cast<int>(heads),
        static_cast<int>(d));
  };
  if (aligned) {
    WithVectors(launch, a, b);
  } else {
    WithElement([&](auto element) { launch(element, std::integral_constant<int, 1>()); }, a, b);
  }
  CheckLaunch("DotHeads");
}

}  // namespace ela::kernels::cuda
