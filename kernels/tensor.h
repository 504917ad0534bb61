// Tensor: a non-owning typed view, row-major, dense but for the stride of its leading dimension.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/check.h"

namespace ela::kernels {

enum class DType : uint8_t { kF32, kF64, kBf16, kI32, kI64 };

constexpr size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF64:
      return 8;
    case DType::kBf16:
      return 2;
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
  }
  return 0;
}

/// bfloat16 storage; arithmetic is done in float. Conversion rounds to nearest even and keeps NaN.
struct Bf16 {
  uint16_t bits = 0;
  Bf16() = default;
  explicit Bf16(float value);
  explicit operator float() const;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<Bf16> {
  static constexpr DType value = DType::kBf16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};

/// A view of [dim(0), ..., dim(rank-1)]; row i of the leading dimension starts at element i *
/// stride().
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape);
  template <class T>
  static Tensor Of(T* data, std::initializer_list<int64_t> shape) {
    return Tensor(const_cast<std::remove_const_t<T>*>(data), DTypeOf<std::remove_const_t<T>>::value,
                  shape);
  }

  /// "Not given"; a tensor of zero rows may be non-null or null.
  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const { return shape_[static_cast<size_t>(i)]; }
  int64_t stride() const { return stride_; }  // elements between rows of the leading dimension
  int64_t numel() const;
  int64_t row_numel() const;  // elements of one row of the leading dimension
  bool dense() const { return stride_ == row_numel(); }

  void* data() const { return data_; }
  /// The elements, as T; checks the type.
  template <class T>
  T* as() const {
    ELA_CHECK(DTypeOf<std::remove_const_t<T>>::value == dtype_, "dtype %d",
              static_cast<int>(dtype_));
    return static_cast<T*>(data_);
  }

  /// Rows [begin, end) of the leading dimension.
  Tensor Rows(int64_t begin, int64_t end) const;
  /// Columns [begin, end) of a [T, n] tensor: keeps the stride.
  Tensor Columns(int64_t begin, int64_t end) const;
  /// Another shape over the same elements. The leading dimension must stay if the tensor is not
  /// dense.
  Tensor View(std::initializer_list<int64_t> shape) const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  std::array<int64_t, 4> shape_{};
  int rank_ = 0;
  int64_t stride_ = 0;
};

}  // namespace ela::kernels
