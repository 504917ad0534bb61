// Tools for testing ops: a context that proves which back end ran, tensors with poisoned contents
// and guard bytes, NaN-safe comparison, and finite differences in double.
//
// On a CUDA device a Buffer has a copy there: handed to an op (as a Tensor) it moves to the device,
// read or written by the functions below it comes back.
#pragma once

#include <gmock/gmock.h>
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
#include "tests/support/test_backend.h"

namespace ela::testing {

using kernels::Backend;
using kernels::Bf16;
using kernels::DType;
using kernels::Tensor;

/// The device of the calling thread's innermost OpContext; null on the host back ends.
inline thread_local kernels::CudaDevice* current_device = nullptr;

/// A context of one back end. On destruction it fails the test if another back end ran an op.
class OpContext {
 public:
  explicit OpContext(Backend backend, int num_threads = 1) : outer_device_(current_device) {
    ctx_.backend = backend;
    if (backend == Backend::kCuda) {
      ctx_.device = TestDevice();
      ctx_.stream = ctx_.device->stream();
      arena_.Reserve(kDeviceScratch, backend);
    }
    current_device = ctx_.device;
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
    if (ctx_.device != nullptr) ctx_.device->Synchronize();
    current_device = outer_device_;
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
  static constexpr size_t kDeviceScratch = size_t{256} << 20;
  kernels::CudaDevice* outer_device_;
  kernels::Arena arena_;
  kernels::Counters counters_;
  kernels::Context ctx_;
};

/// The element type a back end's tests use.
inline DType FloatOf(Backend backend) {
  return backend == Backend::kReference ? DType::kF64 : DType::kF32;
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

  /// For an op: in the memory of the current OpContext's back end.
  Tensor tensor() const {
    if (current_device == nullptr) return host();
    if (device_ == nullptr) {
      if (memory_.data() == nullptr) memory_ = {bytes_.size(), Backend::kCuda};
      device_ = current_device;
      device_->CopyIn(memory_.data(), bytes_.data(), bytes_.size());
    }
    return Shaped(memory_.data());
  }
  /// For the test.
  Tensor host() const {
    if (device_ != nullptr) {  // else only read: ranks share inputs
      device_->CopyOut(bytes_.data(), memory_.data(), bytes_.size());
      device_ = nullptr;
    }
    return Shaped(bytes_.data());
  }
  operator Tensor() const { return tensor(); }  // NOLINT: passes for a Tensor everywhere

  /// Fails the test if a byte outside the tensor changed.
  void CheckGuards() const {
    if (bytes_.empty()) return;  // moved from
    host();
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
  Tensor Shaped(char* memory) const {
    const int64_t rows = shape_[0];
    Tensor all(memory + kGuardBytes, dtype_, {rows, stride_});
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

  DType dtype_;
  std::vector<int64_t> shape_;
  int64_t columns_ = 1;
  int64_t stride_ = 0;
  mutable std::vector<char> bytes_;
  mutable kernels::BackendMemory memory_;          // on the device
  mutable kernels::CudaDevice* device_ = nullptr;  // non-null: memory_ holds the numbers
};

/// Where the functions below look at a tensor: a Buffer's numbers come back from the device first.
inline Tensor Host(const Tensor& t) { return t; }
inline Tensor Host(const Buffer& buffer) { return buffer.host(); }

/// Element i (dense order) of any tensor, as double; strides of the leading dimension are followed.
inline void* ElementOf(const Tensor& t, int64_t i) {
  const int64_t columns = t.row_numel();
  const int64_t at = i / columns * t.stride() + i % columns;
  return static_cast<char*>(t.data()) + static_cast<size_t>(at) * SizeOf(t.dtype());
}

inline double GetAt(const Tensor& t, int64_t i) {
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

inline void SetAt(const Tensor& t, int64_t i, double value) {
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

template <class Source>
double Get(const Source& source, int64_t i) {
  return GetAt(Host(source), i);
}
template <class Target>
void Set(const Target& target, int64_t i, double value) {
  SetAt(Host(target), i, value);
}

template <class Target>
void Fill(const Target& target, double value) {
  const Tensor t = Host(target);
  for (int64_t i = 0; i < t.numel(); ++i) SetAt(t, i, value);
}

/// N(mean, scale^2), the same numbers for every element type (rounded to it).
template <class Target>
void FillNormal(const Target& target, uint64_t seed, double scale = 1, double mean = 0) {
  const Tensor t = Host(target);
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < t.numel(); ++i) {
    SetAt(t, i, static_cast<float>(mean + scale * normal(engine)));
  }
}

template <class Target, class Source>
void Copy(const Target& target, const Source& source) {
  const Tensor to = Host(target), from = Host(source);
  ASSERT_EQ(to.numel(), from.numel());
  for (int64_t i = 0; i < to.numel(); ++i) SetAt(to, i, GetAt(from, i));
}

template <class Source>
std::vector<double> Values(const Source& source) {
  const Tensor t = Host(source);
  std::vector<double> values(static_cast<size_t>(t.numel()));
  for (int64_t i = 0; i < t.numel(); ++i) values[static_cast<size_t>(i)] = GetAt(t, i);
  return values;
}

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

template <class Source>
double MaxAbs(const Source& source) {
  double max = 0;
  for (double value : Values(source)) max = std::fmax(max, std::fabs(value));
  return max;
}

/// max |actual - expected| / max(max |expected|, floor); infinite if either holds a non-finite
/// number.
inline double RelativeErrorOf(const std::vector<double>& actual,
                              const std::vector<double>& expected, double floor) {
  if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double scale = floor, diff = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double e = expected[i], a = actual[i];
    if (!std::isfinite(e) || !std::isfinite(a)) return std::numeric_limits<double>::infinity();
    scale = std::fmax(scale, std::fabs(e));
    diff = std::fmax(diff, std::fabs(a - e));
  }
  return diff / scale;
}

template <class Actual>
double RelativeError(const Actual& actual, const std::vector<double>& expected,
                     double floor = 1e-30) {
  return RelativeErrorOf(Values(actual), expected, floor);
}
template <class Actual, class Expected>
double RelativeError(const Actual& actual, const Expected& expected, double floor = 1e-30) {
  return RelativeErrorOf(Values(actual), Values(expected), floor);
}

/// Bit patterns of two tensors of the same type agree.
template <class Left, class Right>
::testing::AssertionResult BitwiseEqual(const Left& left, const Right& right) {
  const Tensor a = Host(left), b = Host(right);
  if (a.numel() != b.numel() || a.dtype() != b.dtype()) {
    return ::testing::AssertionFailure() << "shapes or types differ";
  }
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(ElementOf(a, i), ElementOf(b, i), SizeOf(a.dtype())) != 0) {
      return ::testing::AssertionFailure()
             << "element " << i << ": " << GetAt(a, i) << " and " << GetAt(b, i);
    }
  }
  return ::testing::AssertionSuccess();
}

/// sum of y * dy: the scalar loss whose gradient with respect to y is dy.
template <class Left, class Right>
double Dot(const Left& y, const Right& dy) {
  const std::vector<double> a = Values(y), b = Values(dy);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
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
