// Float and bf16 tensors, each on its own; Copy also moves equal types of any kind, and Fill sets
// any type.
#include <cmath>
#include <cstring>

#include "kernels/elementwise/elementwise.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

constexpr int64_t kPiece = 2048;

/// body(row, column, n) for pieces of at most kPiece elements; a dense tensor counts as one row.
template <class Body>
void ForEachPiece(const Context& ctx, int64_t rows, int64_t columns, bool dense, const Body& body) {
  if (dense) {
    ParallelBlocks(ctx, rows * columns, 4 * kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += kPiece) body(0, i, std::min(kPiece, end - i));
    });
    return;
  }
  ParallelBlocks(ctx, rows, RowsPerBlock(columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < columns; i += kPiece) body(r, i, std::min(kPiece, columns - i));
    }
  });
}

template <class T>
void FillAs(const Context& ctx, const Tensor& x, T value) {
  ForEachPiece(ctx, x.dim(0), x.row_numel(), x.dense(), [&](int64_t r, int64_t i, int64_t n) {
    std::fill_n(x.as<T>() + r * x.stride() + i, n, value);
  });
}

}  // namespace

void Add(const Context& ctx, Tensor y, Tensor a, Tensor b) {
  CheckShape("a", a, y.dim(0), y.row_numel());
  CheckShape("b", b, y.dim(0), y.row_numel());
  const bool dense = y.dense() && a.dense() && b.dense();
  ForEachPiece(ctx, y.dim(0), y.row_numel(), dense, [&](int64_t r, int64_t i, int64_t n) {
    float a_buffer[kPiece], b_buffer[kPiece], y_buffer[kPiece];
    const float* left = ReadFloats(a, r * a.stride() + i, n, a_buffer);
    const float* right = ReadFloats(b, r * b.stride() + i, n, b_buffer);
    float* out = FloatTarget(y, r * y.stride() + i, y_buffer);
    for (int64_t j = 0; j < n; ++j) out[j] = left[j] + right[j];
    WriteFloats(y, r * y.stride() + i, n, out);
  });
}

void Fill(const Context& ctx, Tensor x, double value) {
  switch (x.dtype()) {
    case DType::kF32:
      return FillAs(ctx, x, static_cast<float>(value));
    case DType::kBf16:
      return FillAs(ctx, x, Bf16(static_cast<float>(value)));
    case DType::kF64:
      return FillAs(ctx, x, value);
    case DType::kI32:
      return FillAs(ctx, x, static_cast<int32_t>(value));
    case DType::kI64:
      return FillAs(ctx, x, static_cast<int64_t>(value));
  }
}

void Copy(const Context& ctx, Tensor y, Tensor x) {
  CheckShape("x", x, y.dim(0), y.row_numel());
  const bool same = x.dtype() == y.dtype(), dense = x.dense() && y.dense();
  const int64_t size = static_cast<int64_t>(SizeOf(y.dtype()));
  ForEachPiece(ctx, y.dim(0), y.row_numel(), dense, [&](int64_t r, int64_t i, int64_t n) {
    const int64_t from = r * x.stride() + i, to = r * y.stride() + i;
    if (same) {
      std::memmove(static_cast<char*>(y.data()) + to * size,
                   static_cast<const char*>(x.data()) + from * size, static_cast<size_t>(n * size));
      return;
    }
    float x_buffer[kPiece];
    const float* in = ReadFloats(x, from, n, x_buffer);
    if (IsFloat(y)) {
      std::memcpy(y.as<float>() + to, in, static_cast<size_t>(n) * sizeof(float));
    } else {
      Narrow(y.as<Bf16>() + to, in, n);
    }
  });
}

void Scale(const Context& ctx, Tensor x, double factor) {
  const float multiplier = static_cast<float>(factor);
  ForEachPiece(ctx, x.dim(0), x.row_numel(), x.dense(), [&](int64_t r, int64_t i, int64_t n) {
    float buffer[kPiece];
    const float* in = ReadFloats(x, r * x.stride() + i, n, buffer);
    float* out = FloatTarget(x, r * x.stride() + i, buffer);
    for (int64_t j = 0; j < n; ++j) out[j] = in[j] * multiplier;
    WriteFloats(x, r * x.stride() + i, n, out);
  });
}

void RowArgmax(const Context& ctx, Tensor index, Tensor x) {
  const int64_t columns = x.row_numel();
  CheckShape("index", index, x.dim(0), 1);
  const ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, BufferFloats(x));
  ParallelBlocks(ctx, x.dim(0), RowsPerBlock(columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = ReadRow(x, r, buffers.Get());
      int64_t best = -1;
      for (int64_t i = 0; i < columns; ++i) {
        if (best < 0 ? !std::isnan(row[i]) : row[i] > row[best]) best = i;
      }
      index.as<int32_t>()[r * index.stride()] = static_cast<int32_t>(std::max<int64_t>(best, 0));
    }
  });
}

void RowDots(const Context& ctx, Tensor dots, Tensor a, Tensor b) {
  const int64_t heads = dots.row_numel(), d = a.row_numel() / heads;
  CheckShape("a", a, dots.dim(0), heads * d);
  CheckShape("b", b, dots.dim(0), heads * d);
  ParallelBlocks(ctx, dots.dim(0), RowsPerBlock(a.row_numel()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        float sum = 0, a_buffer[kPiece], b_buffer[kPiece];
        for (int64_t i = 0; i < d; i += kPiece) {
          const int64_t n = std::min(kPiece, d - i);
          const float* left = ReadFloats(a, r * a.stride() + h * d + i, n, a_buffer);
          const float* right = ReadFloats(b, r * b.stride() + h * d + i, n, b_buffer);
          sum += Dot(left, right, n);
        }
        dots.as<float>()[r * dots.stride() + h] = sum;
      }
    }
  });
}

}  // namespace ela::kernels::cpu
