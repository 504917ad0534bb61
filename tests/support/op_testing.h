// Tools for testing ops: a context that proves which back end ran, tensors with poisoned contents
// and guard bytes, NaN-safe comparison, and finite differences in double.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::testing {

using kernels::Backend;
using kernels::Bf16;
using kernels::DType;
using kernels::Tensor;

/// A context of one back end. On destruction it fails the test if another back end ran an op.
class OpContext {
 public:
  explicit OpContext(Backend backend, int num_threads = 1) {
    ctx_.backend = backend;
    ctx_.num_threads = num_threads;
    ctx_.scratch = &arena_;
    ctx_.counters = &counters_;
  }
  ~OpContext() {
    const Backend backend = ctx_.backend;
    EXPECT_TRUE(backend == Backend::kReference || counters_.reference_ops == 0);
    EXPECT_TRUE(backend == Backend::kCpu || counters_.cpu_ops == 0);
    EXPECT_TRUE(backend == Backend::kCuda || counters_.cuda_ops == 0);
    EXPECT_EQ(arena_.Mark(), 0u) << "an op kept scratch memory";
  }
  OpContext(const OpContext&) = delete;
  OpContext& operator=(const OpContext&) = delete;

  const kernels::Context& operator*() const { return ctx_; }
  operator const kernels::Context&() const {
    return ctx_;
  }  // NOLINT: passes for a Context everywhere
  kernels::Counters& counters() { return counters_; }
  kernels::Arena& arena() { return arena_; }

 private:
  kernels::Arena arena_;
  kernels::Counters counters_;
  kernels::Context ctx_;
};

/// The element type a back end's tests use.
inline DType FloatOf(Backend backend) {
  return backend == Backend::kReference ? DType::kF64 : DType::kF32;
}

/// Element i (dense order) of any tensor, as double; strides of the leading dimension are followed.
inline void* ElementOf(const Tensor& t, int64_t i) {
  const int64_t columns = t.row_numel();
  const int64_t at = i / columns * t.stride() + i % columns;
  return static_cast<char*>(t.data()) + static_cast<size_t>(at) * SizeOf(t.dtype());
}

inline double Get(const Tensor& t, int64_t i) {
  const void* p = ElementOf(t, i);
  switch (t.dtype()) {
    case DType::kF32:
      return *static_cast<const float*>(p);
    case DType::kF64:
      return *static_cast<const double*>(p);
    case DType::kBf16:
      return static_cast<float>(*static_cast<const Bf16*>(p));
    case DType::kI32:
      return *static_cast<const int32_t*>(p);
    case DType::kI64:
      return static_cast<double>(*static_cast<const int64_t*>(p));
  }
  return 0;
}

inline void Set(const Tensor& t, int64_t i, double value) {
  void* p = ElementOf(t, i);
  switch (t.dtype()) {
    case DType::kF32:
      *static_cast<float*>(p) = static_cast<float>(value);
      return;
    case DType::kF64:
      *static_cast<double*>(p) = value;
      return;
    case DType::kBf16:
      *static_cast<Bf16*>(p) = Bf16(static_cast<float>(value));
      return;
    case DType::kI32:
      *static_cast<int32_t*>(p) = static_cast<int32_t>(value);
      return;
    case DType::kI64:
      *static_cast<int64_t*>(p) = static_cast<int64_t>(value);
      return;
  }
}

inline void Fill(const Tensor& t, double value) {
  for (int64_t i = 0; i < t.numel(); ++i) Set(t, i, value);
}

/// N(mean, scale^2), the same numbers for every element type (rounded to it).
inline void FillNormal(const Tensor& t, uint64_t seed, double scale = 1, double mean = 0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < t.numel(); ++i) {
    Set(t, i, static_cast<float>(mean + scale * normal(engine)));
  }
}

inline void Copy(const Tensor& to, const Tensor& from) {
  ASSERT_EQ(to.numel(), from.numel());
  for (int64_t i = 0; i < to.numel(); ++i) Set(to, i, Get(from, i));
}

inline std::vector<double> Values(const Tensor& t) {
  std::vector<double> values(static_cast<size_t>(t.numel()));
  for (int64_t i = 0; i < t.numel(); ++i) values[static_cast<size_t>(i)] = Get(t, i);
  return values;
}

/// Memory of a tensor between guard bytes, poisoned (every byte 0xff: NaN in the float types, -1 in
/// the integers), so that what an op leaves unwritten or writes outside is found. `stride` > row
/// length makes a strided tensor, whose gaps are guards too.
class Buffer {
 public:
  Buffer(DType dtype, std::initializer_list<int64_t> shape, int64_t stride = 0)
      : dtype_(dtype), shape_(shape) {
    const int64_t rows = shape_[0];
    columns_ = 1;
    for (size_t i = 1; i < shape_.size(); ++i) columns_ *= shape_[i];
    stride_ = stride == 0 ? columns_ : stride;
    bytes_.assign(static_cast<size_t>(rows * stride_) * SizeOf(dtype) + 2 * kGuardBytes, kPoison);
  }
  ~Buffer() { CheckGuards(); }
  Buffer(Buffer&& other) = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  Tensor tensor() const {
    char* data = const_cast<char*>(bytes_.data()) + kGuardBytes;
    const int64_t rows = shape_[0];
    Tensor all(data, dtype_, {rows, stride_});
    if (stride_ != columns_) all = all.Columns(0, columns_);
    switch (shape_.size()) {
      case 1:
        return all.View({rows});
      case 2:
        return all;
      case 3:
        return all.View({rows, shape_[1], shape_[2]});
      default:
        return all.View({rows, shape_[1], shape_[2], shape_[3]});
    }
  }
  operator Tensor() const { return tensor(); }  // NOLINT: passes for a Tensor everywhere

  /// Fails the test if a byte outside the tensor changed.
  void CheckGuards() const {
    if (bytes_.empty()) return;  // moved from
    const size_t element = SizeOf(dtype_);
    const size_t row = static_cast<size_t>(columns_) * element;
    const size_t pitch = static_cast<size_t>(stride_) * element;
    for (size_t i = 0; i < bytes_.size(); ++i) {
      const bool guard = i < kGuardBytes || i >= bytes_.size() - kGuardBytes ||
                         (pitch > 0 && (i - kGuardBytes) % pitch >= row);
      if (!guard || bytes_[i] == kPoison) continue;
      ADD_FAILURE() << "byte " << static_cast<int64_t>(i) - static_cast<int64_t>(kGuardBytes)
                    << " outside the tensor was written";
      return;
    }
  }

 private:
  static constexpr size_t kGuardBytes = 256;
  static constexpr char kPoison = static_cast<char>(0xff);
  DType dtype_;
  std::vector<int64_t> shape_;
  int64_t columns_ = 1;
  int64_t stride_ = 0;
  std::vector<char> bytes_;
};

/// A buffer of N(mean, scale^2).
inline Buffer RandomBuffer(DType dtype, std::initializer_list<int64_t> shape, uint64_t seed,
                           double scale = 1, double mean = 0) {
  Buffer buffer(dtype, shape);
  FillNormal(buffer, seed, scale, mean);
  return buffer;
}

inline Buffer ZeroBuffer(DType dtype, std::initializer_list<int64_t> shape) {
  Buffer buffer(dtype, shape);
  Fill(buffer, 0);
  return buffer;
}

inline double MaxAbs(const Tensor& t) {
  double max = 0;
  for (int64_t i = 0; i < t.numel(); ++i) max = std::fmax(max, std::fabs(Get(t, i)));
  return max;
}

/// max |actual - expected| / max(max |expected|, floor); infinite if either holds a non-finite
/// number.
inline double RelativeError(const Tensor& actual, const std::vector<double>& expected,
                            double floor = 1e-30) {
  if (actual.numel() != static_cast<int64_t>(expected.size())) {
    return std::numeric_limits<double>::infinity();
  }
  double scale = floor, diff = 0;
  for (int64_t i = 0; i < actual.numel(); ++i) {
    const double e = expected[static_cast<size_t>(i)], a = Get(actual, i);
    if (!std::isfinite(e) || !std::isfinite(a)) return std::numeric_limits<double>::infinity();
    scale = std::fmax(scale, std::fabs(e));
    diff = std::fmax(diff, std::fabs(a - e));
  }
  return diff / scale;
}

inline double RelativeError(const Tensor& actual, const Tensor& expected, double floor = 1e-30) {
  return RelativeError(actual, Values(expected), floor);
}

/// Bit patterns of two tensors of the same type agree.
inline ::testing::AssertionResult BitwiseEqual(const Tensor& a, const Tensor& b) {
  if (a.numel() != b.numel() || a.dtype() != b.dtype()) {
    return ::testing::AssertionFailure() << "shapes or types differ";
  }
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(ElementOf(a, i), ElementOf(b, i), SizeOf(a.dtype())) != 0) {
      return ::testing::AssertionFailure()
             << "element " << i << ": " << Get(a, i) << " and " << Get(b, i);
    }
  }
  return ::testing::AssertionSuccess();
}

/// sum of y * dy: the scalar loss whose gradient with respect to y is dy.
inline double Dot(const Tensor& y, const Tensor& dy) {
  double sum = 0;
  for (int64_t i = 0; i < y.numel(); ++i) sum += Get(y, i) * Get(dy, i);
  return sum;
}

/// d loss() / d x by central differences of fourth order (error ~ step^4), x in double.
inline std::vector<double> NumericalGradient(const Tensor& x, const std::function<double()>& loss,
                                             double step = 1e-3) {
  std::vector<double> gradient(static_cast<size_t>(x.numel()));
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double at = Get(x, i);
    auto value = [&](double offset) {
      Set(x, i, at + offset);
      return loss();
    };
    const double near = value(step) - value(-step), far = value(2 * step) - value(-2 * step);
    Set(x, i, at);
    gradient[static_cast<size_t>(i)] = (8 * near - far) / (12 * step);
  }
  return gradient;
}

}  // namespace ela::testing
