// Pairs (2i, 2i+1) of each head turn in place: a thread some pairs of a row, one access a head,
// whose sines and cosines serve every head. Angles are reduced in double, so positions in the
// millions turn as exactly as small ones. x is read and written once.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/device_code.cuh"
#include "kernels/early_launch.cuh"
#include "kernels/rope/rope.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kMostPairs = 256;  // head dims up to 512: the turns travel as kernel parameters

struct Turns {
  double per_position[kMostPairs];
};

/// A thread N / 2 pairs of every head of a row: one 16-byte access a head, or a pair at a time.
template <class T, bool kVectors>
__global__ void TurnPairs(Rows<T> x, const int32_t* positions, Turns turns, int64_t rows, int heads,
                          int heads_at_once, int head_dim) {
  constexpr int N = kVectors ? kVector<T> : 2;
  // Lanes read different ones, which parameters are not made for.
  __shared__ double per_position[kMostPairs];
  for (int i = static_cast<int>(threadIdx.x); i < head_dim / 2; i += kBlock) {
    per_position[i] = turns.per_position[i];
  }
  __syncthreads();
  StartEarly();
  const int vectors = head_dim / N;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (item >= rows * vectors) return;
  const int64_t row = item / vectors;
  const int column = static_cast<int>(item - row * vectors) * N;
  const double position = positions[row];
  float sine[N / 2], cosine[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const double t = position * per_position[column / 2 + i];
    sincospif(2.0f * static_cast<float>(t - rint(t)), &sine[i], &cosine[i]);
  }
  const int first = static_cast<int>(blockIdx.y) * heads_at_once;
  T* at = x[row] + static_cast<int64_t>(first) * head_dim + column;
  for (int h = first; h < min(heads, first + heads_at_once); ++h, at += head_dim) {
    float v[N];
    if constexpr (kVectors) {
      Load(v, at);
    } else {
      for (int i = 0; i < N; ++i) v[i] = ToFloat(at[i]);
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float even = v[2 * i], odd = v[2 * i + 1];
      v[2 * i] = even * cosine[i] - odd * sine[i];
      v[2 * i + 1] = even * sine[i] + odd * cosine[i];
    }
    if constexpr (kVectors) {
      StoreAll(at, v);
    } else {
      for (int i = 0; i < N; ++i) Store(at + i, v[i]);
    }
  }
}

/// All heads of a thread where rows alone fill a card; of few rows, as in decoding, fewer.
int64_t HeadsAtOnce(int64_t items, int64_t heads) {
  constexpr int64_t kThreads = int64_t{1} << 16;
  return items >= kThreads ? heads : CeilDiv(heads, std::min(heads, CeilDiv(kThreads, items)));
}

}  // namespace

void Rope(const Context& ctx, Tensor x, Tensor positions, double theta, bool inverse) {
  const int64_t rows = x.dim(0);
  CheckShape("positions", positions, rows, 1);
  if (rows == 0) return;
  ELA_CHECK(x.rank() == 3 && x.dim(2) % 2 == 0, "x is not [T, H, an even D]");
  const int64_t head_dim = x.dim(2), pairs = head_dim / 2;
  ELA_CHECK(pairs <= kMostPairs, "head dim %lld", static_cast<long long>(head_dim));
  Turns turns;
  for (int64_t i = 0; i < pairs; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    turns.per_position[i] = std::pow(theta, exponent) / (2 * std::numbers::pi) * (inverse ? -1 : 1);
  }
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        const auto launch = [&](auto vectors) {
          const int64_t width = vectors ? kVector<T> : 2;
          const int64_t items = rows * (head_dim / width);
          const int64_t heads_at_once = HeadsAtOnce(items, x.dim(1));
          const dim3 grid(GridSize(CeilDiv(items, kBlock)),
                          GridSize(CeilDiv(x.dim(1), heads_at_once)));
          LaunchEarly(ctx, rows, TurnPairs<T, vectors>, grid, kBlock, Rows<T>(x),
                      positions.as<int32_t>(), turns, rows, static_cast<int>(x.dim(1)),
                      static_cast<int>(heads_at_once), static_cast<int>(head_dim));
        };
        if (n > 1 && head_dim % kVector<T> == 0) {
          launch(std::true_type());
        } else {
          launch(std::false_type());
        }
      },
      x);
  CheckLaunch("TurnPairs");
}

}  // namespace ela::kernels::cuda
