// Device memory and a CUDA context for tests of ops. Without a device the tests say so and skip.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/context.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace ela::testing::device {

inline bool HaveCudaDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Derive fixtures from this: every test is skipped where there is no device.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HaveCudaDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

/// A context on the current device with `scratch_bytes` of scratch memory.
class CudaContext {
 public:
  explicit CudaContext(size_t scratch_bytes = size_t{256} << 20) {
    auto device = kernels::CudaDevice::Open(0);
    if (!device.ok()) {
      ADD_FAILURE() << device.status();
      return;
    }
    device_ = *std::move(device);
    arena_.Reserve(scratch_bytes, kernels::Backend::kCuda);
    ctx_.backend = kernels::Backend::kCuda;
    ctx_.device = device_.get();
    ctx_.stream = device_->stream();
    ctx_.scratch = &arena_;
    ctx_.counters = &counters_;
  }
  ~CudaContext() {
    Synchronize();
    EXPECT_EQ(arena_.Mark(), 0u) << "an op kept scratch memory";
  }
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  void Synchronize() const {
    const cudaError_t error = cudaDeviceSynchronize();
    ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  }
  operator const kernels::Context&() const { return ctx_; }  // NOLINT: passes for a Context
  kernels::Counters& counters() { return counters_; }
  const kernels::Arena& arena() const { return arena_; }

 private:
  std::unique_ptr<kernels::CudaDevice> device_;
  kernels::Arena arena_;
  kernels::Counters counters_;
  kernels::Context ctx_;
};

/// A tensor on the device between guard bytes, poisoned: every byte 0xff, which is NaN. `stride` is
/// the number of elements between rows, its gaps guards too.
class DeviceBuffer {
 public:
  DeviceBuffer(kernels::DType dtype, int64_t rows, int64_t columns, int64_t stride = 0)
      : dtype_(dtype), rows_(rows), columns_(columns), stride_(stride == 0 ? columns : stride) {
    const size_t bytes = Bytes() + 2 * kGuard;
    EXPECT_EQ(cudaMalloc(&memory_, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory_, 0xff, bytes), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // the ops' stream does not wait for this one
  }
  ~DeviceBuffer() {
    if (memory_ != nullptr) (void)cudaFree(memory_);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    dtype_ = other.dtype_, rows_ = other.rows_;
    columns_ = other.columns_, stride_ = other.stride_;
    return *this;
  }

  kernels::Tensor tensor() const {
    const kernels::Tensor all(static_cast<char*>(memory_) + kGuard, dtype_, {rows_, stride_});
    return stride_ == columns_ ? all : all.Columns(0, columns_);
  }
  kernels::Tensor Heads(int64_t heads) const {
    return tensor().View({rows_, heads, columns_ / heads});
  }

  void Set(const std::vector<double>& values) {
    std::vector<char> host = Download();
    for (int64_t i = 0; i < rows_ * columns_; ++i) {
      char* at = host.data() + kGuard + Offset(i);
      const auto value = static_cast<float>(values[static_cast<size_t>(i)]);
      const kernels::Bf16 half(value);
      if (dtype_ == kernels::DType::kBf16) std::memcpy(at, &half, sizeof half);
      if (dtype_ == kernels::DType::kF32) std::memcpy(at, &value, sizeof value);
    }
    EXPECT_EQ(cudaMemcpy(memory_, host.data(), host.size(), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // that copy may return before it is done
  }

  /// The elements; fails the test if a guard byte changed.
  std::vector<double> Get() const {
    const std::vector<char> host = Download();
    CheckGuards(host);
    std::vector<double> values(static_cast<size_t>(rows_ * columns_));
    for (int64_t i = 0; i < rows_ * columns_; ++i) {
      const char* at = host.data() + kGuard + Offset(i);
      float value = 0;
      kernels::Bf16 half;
      if (dtype_ == kernels::DType::kBf16) {
        std::memcpy(&half, at, sizeof half);
        value = static_cast<float>(half);
      } else {
        std::memcpy(&value, at, sizeof value);
      }
      values[static_cast<size_t>(i)] = value;
    }
    return values;
  }

 private:
  static constexpr size_t kGuard = 256;

  size_t Bytes() const { return static_cast<size_t>(rows_ * stride_) * SizeOf(dtype_); }
  size_t Offset(int64_t i) const {
    return static_cast<size_t>(i / columns_ * stride_ + i % columns_) * SizeOf(dtype_);
  }
  std::vector<char> Download() const {
    std::vector<char> host(Bytes() + 2 * kGuard);
    EXPECT_EQ(cudaMemcpy(host.data(), memory_, host.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }
  void CheckGuards(const std::vector<char>& host) const {
    const size_t pitch = static_cast<size_t>(stride_) * SizeOf(dtype_);
    const size_t row = static_cast<size_t>(columns_) * SizeOf(dtype_);
    for (size_t i = 0; i < host.size(); ++i) {
      const bool outside = i < kGuard || i >= host.size() - kGuard;
      if (!outside && (i - kGuard) % pitch < row) continue;
      if (host[i] == static_cast<char>(0xff)) continue;
      ADD_FAILURE() << "byte " << i << " outside the tensor was written";
      return;
    }
  }

  void* memory_ = nullptr;
  kernels::DType dtype_ = kernels::DType::kF32;
  int64_t rows_ = 0, columns_ = 1, stride_ = 1;
};

inline double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return std::sqrt(sum);
}

/// |actual - expected| / max(|expected|, 0.1 |size|), Euclidean; infinite if anything is not
/// finite. `size` holds the sums of absolute terms: where the terms cancel, rounding of the terms
/// is what an error is measured against.
inline double RmsError(const std::vector<double>& actual, const std::vector<double>& expected,
                       const std::vector<double>& size) {
  if (actual.size() != expected.size()) return INFINITY;
  double diff = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(actual[i])) return INFINITY;
    diff += (actual[i] - expected[i]) * (actual[i] - expected[i]);
  }
  return std::sqrt(diff) / std::max(1e-30, std::max(Norm(expected), 0.1 * Norm(size)));
}

}  // namespace ela::testing::device
