// How the CPU back end reads and writes elements: storage is float or bf16, arithmetic is float. A
// float tensor is used where it lies; a bf16 one is widened into a buffer on the way in and rounded
// to nearest even on the way out.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/check.h"
#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

inline bool IsFloat(const Tensor& x) { return x.dtype() == DType::kF32; }

/// Checks [rows, columns], whatever shape a row has, and for the CPU back end the element type.
inline void CheckShape(const char* name, const Tensor& x, int64_t rows, int64_t columns) {
  ELA_CHECK(x.rank() >= 1 && x.dim(0) == rows && (rows == 0 || x.row_numel() == columns),
            "%s is [%lld, %lld], wanted [%lld, %lld]", name, static_cast<long long>(x.dim(0)),
            static_cast<long long>(x.row_numel()), static_cast<long long>(rows),
            static_cast<long long>(columns));
}

inline void Widen(float* y, const Bf16* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    y[i] = std::bit_cast<float>(static_cast<uint32_t>(x[i].bits) << 16);
}

inline void Narrow(Bf16* y, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(x[i]);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (u >> 16) | 0x40u;
    y[i].bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}

/// n values from element `offset` of x: its own memory, or `buffer` (n floats) if they had to be
/// widened.
inline const float* ReadFloats(const Tensor& x, int64_t offset, int64_t n, float* buffer) {
  if (IsFloat(x)) return x.as<float>() + offset;
  Widen(buffer, x.as<Bf16>() + offset, n);
  return buffer;
}
inline const float* ReadRow(const Tensor& x, int64_t row, float* buffer) {
  return ReadFloats(x, row * x.stride(), x.row_numel(), buffer);
}

/// Where to write values for y: its own memory or `buffer`; WriteFloats then puts the buffer, if it
/// was used, into y.
inline float* FloatTarget(const Tensor& y, int64_t offset, float* buffer) {
  return IsFloat(y) ? y.as<float>() + offset : buffer;
}
inline void WriteFloats(const Tensor& y, int64_t offset, int64_t n, const float* buffer) {
  if (!IsFloat(y)) Narrow(y.as<Bf16>() + offset, buffer, n);
}
inline float* RowTarget(const Tensor& y, int64_t row, float* buffer) {
  return FloatTarget(y, row * y.stride(), buffer);
}
inline void WriteRow(const Tensor& y, int64_t row, const float* buffer) {
  WriteFloats(y, row * y.stride(), y.row_numel(), buffer);
}

/// Floats a buffer for one row of x needs: none where x itself is float.
inline int64_t BufferFloats(const Tensor& x) {
  return IsFloat(x) ? 0 : (x.row_numel() + 63) / 64 * 64;
}

/// x itself if it is float, else a dense float copy in scratch.
Tensor Widened(const Context& ctx, const Tensor& x);
/// y itself if it is float, else dense float scratch of its shape (not initialised), for NarrowInto
/// to write back.
Tensor WideTarget(const Context& ctx, const Tensor& y);
void NarrowInto(const Context& ctx, const Tensor& y, const Tensor& wide);

}  // namespace ela::kernels
