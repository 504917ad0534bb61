// Pairs (2i, 2i+1) of each head turn in place: a thread a (row, pair), whose sine and cosine serve
// every head. Angles are reduced in double, so positions in the millions turn as exactly as small
// ones. x is read and written once.
#include <cmath>
#include <numbers>

#include "kernels/device_code.cuh"
#include "kernels/rope/rope.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kMostPairs = 256;  // head dims up to 512: the turns travel as kernel parameters

struct Turns {
  double per_position[kMostPairs];
};

template <class T>
__global__ void TurnPairs(Rows<T> x, const int32_t* positions, Turns turns, int64_t rows, int heads,
                          int pairs) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (item >= rows * pairs) return;
  const int64_t row = item / pairs;
  const int pair = static_cast<int>(item - row * pairs);
  const double t = positions[row] * turns.per_position[pair];
  float sine, cosine;
  sincospif(2.0f * static_cast<float>(t - rint(t)), &sine, &cosine);
  T* at = x[row] + 2 * pair;
  for (int h = 0; h < heads; ++h, at += 2 * pairs) {
    const float even = ToFloat(at[0]), odd = ToFloat(at[1]);
    Store(at, even * cosine - odd * sine);
    Store(at + 1, even * sine + odd * cosine);
  }
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
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        TurnPairs<T><<<GridSize(CeilDiv(rows * pairs, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(x), positions.as<int32_t>(), turns, rows, static_cast<int>(x.dim(1)),
            static_cast<int>(pairs));
      },
      x);
  CheckLaunch("TurnPairs");
}

}  // namespace ela::kernels::cuda
