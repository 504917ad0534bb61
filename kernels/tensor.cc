#include "kernels/tensor.h"

#include <cstring>

namespace ela::kernels {

Bf16::Bf16(float value) {
  uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) {
    bits = static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
  } else {
    bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
}

Bf16::operator float() const {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &u, sizeof value);
  return value;
}

Tensor::Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape)
    : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
  ELA_CHECK(rank_ >= 1 && rank_ <= 4, "rank %d", rank_);
  size_t i = 0;
  for (int64_t n : shape) {
    ELA_CHECK(n >= 0, "dim %zu = %lld", i, static_cast<long long>(n));
    shape_[i++] = n;
  }
  stride_ = row_numel();
}

int64_t Tensor::row_numel() const {
  int64_t n = 1;
  for (int i = 1; i < rank_; ++i) n *= dim(i);
  return n;
}

int64_t Tensor::numel() const { return rank_ == 0 ? 0 : dim(0) * row_numel(); }

Tensor Tensor::Rows(int64_t begin, int64_t end) const {
  ELA_CHECK(rank_ >= 1 && 0 <= begin && begin <= end && end <= dim(0));
  Tensor t = *this;
  t.shape_[0] = end - begin;
  t.data_ = static_cast<char*>(data_) + static_cast<size_t>(begin * stride_) * SizeOf(dtype_);
  return t;
}

Tensor Tensor::Columns(int64_t begin, int64_t end) const {
  ELA_CHECK(rank_ == 2 && 0 <= begin && begin <= end && end <= dim(1));
  Tensor t = *this;
  t.shape_[1] = end - begin;
  t.data_ = static_cast<char*>(data_) + static_cast<size_t>(begin) * SizeOf(dtype_);
  return t;
}

Tensor Tensor::View(std::initializer_list<int64_t> shape) const {
  Tensor t(data_, dtype_, shape);
  ELA_CHECK(t.numel() == numel());
  if (!dense()) {
    ELA_CHECK(t.dim(0) == dim(0));
    t.stride_ = stride_;
  }
  return t;
}

}  // namespace ela::kernels
