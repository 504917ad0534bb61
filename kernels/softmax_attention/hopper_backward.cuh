// Between the kernel of the backward pass on Hopper and what prepares and finishes it.
#pragma once

#include "kernels/device_code.cuh"
#include "kernels/hopper.cuh"
#include "kernels/softmax_attention/hopper_places.h"

namespace ela::kernels::cuda::softmax {

/// Where gradients are added, [T, H, D].
struct Gradient {
  void* data = nullptr;
  int64_t stride = 0;
  bool is_float = false;

  Gradient() = default;
  explicit Gradient(const Tensor& x)
      : data(x.data()), stride(x.stride()), is_float(x.dtype() == DType::kF32) {}
  __device__ float2 Pair(int64_t row, int64_t column) const {
    const int64_t at = row * stride + column;
    if (is_float) return *reinterpret_cast<const float2*>(static_cast<const float*>(data) + at);
    return hopper::Unpack(*reinterpret_cast<const uint32_t*>(static_cast<const bf16*>(data) + at));
  }
  __device__ void SetPair(int64_t row, int64_t column, float x, float y) const {
    const int64_t at = row * stride + column;
    if (is_float) {
      *reinterpret_cast<float2*>(static_cast<float*>(data) + at) = make_float2(x, y);
    } else {
      *reinterpret_cast<uint32_t*>(static_cast<bf16*>(data) + at) = hopper::Pack(x, y);
    }
  }
};

struct BackwardArgs {
  CUtensorMap q, k, v, dy;
  Gradient dq, dk, dv;
  const float2* statistics;  // [H, rows of queries in whole tiles]: lse in base 2, delta
  float* sums;               // of dq, [tile of queries, H][its accumulators]
  int* turns;                // [tile of queries, H]: how many tiles of keys have added
  Tiles queries, keys;
  const Span* spans;      // of queries
  const Span* key_spans;  // of keys
  int* next;              // item: a tile of keys and a head
  int heads, heads_together;
  float scale, scale_log2;
  bool causal;
};

/// Sizes and places in shared memory, in bytes.
template <int kDim>
struct BackwardSize {
  static constexpr int kQueryRows = kDim == 64 ? 128 : 64;
  static constexpr int kStages = 2;
  static constexpr int kKeyTile = kKeyRows * kDim * 2;
  static constexpr int kQueryTile = kQueryRows * kDim * 2;
  static constexpr int kSumBytes = kQueryRows * kDim * 4;
  static constexpr int kDsTile = kQueryRows * kKeyRows * 2;
  static constexpr int kQueries = 2 * kKeyTile;  // after keys and values
  static constexpr int kDy = kQueries + kStages * kQueryTile;
  static constexpr int kDs = kDy + kStages * kQueryTile;  // of two steps
  static constexpr int kSums = kDs + 2 * kDsTile;
  static constexpr int kSumStages = kDim == 64 ? 1 : 2;
  static constexpr int kStatistics = kSums + kSumStages * kSumBytes;
  static constexpr int kPlaces = kStatistics + kStages * kQueryRows * 8;  // of queries
  static constexpr int kInfo = kPlaces + kStages * kQueryRows * 8;
  static constexpr int kBytes = kInfo + 256;
  static_assert(kBytes <= 227 * 1024);
};

/// dk and dv are added to, the sums of dq written.
template <int kDim>
void LaunchGradients(const Context& ctx, const BackwardArgs& args);

}  // namespace ela::kernels::cuda::softmax
