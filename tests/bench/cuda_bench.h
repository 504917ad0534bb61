// What the parts of ela_cuda_bench share: a device, its memory, random inputs, and medians of 20
// timed runs after 3 of warm-up by device events.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/device.h"

namespace ela::kernels::cuda {

inline constexpr int kRuns = 20;

inline void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

/// About N(0, 1): the sum of 4 uniform numbers, from a hash of the index.
__global__ inline void FillNormal(__nv_bfloat16* x, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t h = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull + seed;
    h = (h ^ (h >> 31)) * 0xBF58476D1CE4E5B9ull;
    h ^= h >> 29;
    float sum = -2.0f;
    for (int j = 0; j < 4; ++j) sum += static_cast<float>((h >> (16 * j)) & 0xffff) / 65536.0f;
    x[i] = __float2bfloat16(sum * 1.7320508f);
  }
}

struct Memory {
  void* data = nullptr;
  explicit Memory(size_t bytes) { Check(cudaMalloc(&data, bytes)); }
  ~Memory() { (void)cudaFree(data); }
  Memory(Memory&& other) noexcept : data(std::exchange(other.data, nullptr)) {}
};

class Bench {
 public:
  Bench() {
    auto device = CudaDevice::Open(0);
    if (!device.ok()) {
      std::printf("%s\n", device.status().ToString().c_str());
      return;
    }
    device_ = *std::move(device);
    arena_.Reserve(size_t{1} << 30, Backend::kCuda);
    ctx_.backend = Backend::kCuda;
    ctx_.device = device_.get();
    ctx_.stream = device_->stream();
    ctx_.scratch = &arena_;
    ctx_.counters = &counters_;
    stream_ = static_cast<cudaStream_t>(ctx_.stream);
  }
  bool ok() const { return device_ != nullptr; }
  const Context& ctx() const { return ctx_; }
  size_t scratch_bytes() const { return arena_.peak_bytes(); }

  /// Of runs that follow one another on the device, as in a step: the host prepares them ahead.
  double MedianSeconds(const std::function<void()>& work) {
    cudaEvent_t begin[kRuns], end[kRuns];
    for (int run = -3; run < kRuns; ++run) {
      if (run >= 0) {
        Check(cudaEventCreate(&begin[run]));
        Check(cudaEventCreate(&end[run]));
        Check(cudaEventRecord(begin[run], stream_));
      }
      work();
      if (run >= 0) Check(cudaEventRecord(end[run], stream_));
    }
    Check(cudaStreamSynchronize(stream_));
    std::vector<float> times(kRuns);
    for (int run = 0; run < kRuns; ++run) {
      Check(cudaEventElapsedTime(&times[static_cast<size_t>(run)], begin[run], end[run]));
      Check(cudaEventDestroy(begin[run]));
      Check(cudaEventDestroy(end[run]));
    }
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    return times[kRuns / 2] * 1e-3;
  }

  /// Bytes a second, read and written.
  double CopySpeed() {
    const size_t bytes = size_t{2} << 30;
    const Memory from(bytes), to(bytes);
    const double seconds = MedianSeconds([&] {
      Check(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream_));
    });
    return 2.0 * static_cast<double>(bytes) / seconds;
  }

  Tensor Random(std::vector<Memory>* memory, int64_t rows, int64_t heads, int64_t dim) {
    memory->emplace_back(static_cast<size_t>(rows * heads * dim) * 2);
    auto* data = static_cast<__nv_bfloat16*>(memory->back().data);
    FillNormal<<<1024, 256, 0, stream_>>>(data, rows * heads * dim, seed_++);
    Check(cudaGetLastError());
    return Tensor(data, DType::kBf16, {rows, heads, dim});
  }
  Tensor Floats(std::vector<Memory>* memory, int64_t rows, int64_t columns) {
    memory->emplace_back(static_cast<size_t>(rows * columns) * 4);
    return Tensor(memory->back().data, DType::kF32, {rows, columns});
  }

 private:
  std::unique_ptr<CudaDevice> device_;
  Arena arena_;
  Counters counters_;
  Context ctx_;
  cudaStream_t stream_ = nullptr;
  uint32_t seed_ = 1;
};

/// What a row of a table times.
struct Shape {
  const char* name;
  int64_t sequences, length, heads, dim;
  bool causal = true;
};

/// An object a line: `kind` names the shape, `unit` what the seconds are compared with.
inline void PrintJson(const char* kind, const Shape& shape, double forward, double backward,
                      const char* unit, double rate) {
  std::printf(
      "{\"%s\": \"%s\", \"sequences\": %lld, \"length\": %lld, \"heads\": %lld, \"dim\": %lld, "
      "\"causal\": %s, \"forward\": %.9f, \"backward\": %.9f, \"%s\": %.6g}\n",
      kind, shape.name, static_cast<long long>(shape.sequences),
      static_cast<long long>(shape.length), static_cast<long long>(shape.heads),
      static_cast<long long>(shape.dim), shape.causal ? "true" : "false", forward, backward, unit,
      rate);
}

/// Softmax attention's table (softmax_cuda_bench.cu).
void RunSoftmax(Bench* bench, bool json);

}  // namespace ela::kernels::cuda
