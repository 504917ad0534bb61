// The keys of a sequence are cut into parts of 256, a block each for every head; a warp takes four
// keys at a time, its lanes columns, with an online softmax in float. Parts are merged in order.
// Keys and values are read once. Which part is whose depends on no length, so the launches of all
// steps are the same (CudaGraph), and parts past a sequence's position end at once.
#include <cmath>

#include "kernels/device_code.cuh"
#include "kernels/softmax_attention/softmax_attention.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kPart = 256;  // keys
constexpr int kWarps = kBlock / kWarp;
constexpr int kAtOnce = 4;  // keys of a warp
constexpr int kMostHeadDim = 256;

template <class T>
struct Problem {
  Rows<T> y, q, k, v;
  T *keys, *values;  // [B, C, H, D]
  const int32_t* positions;
  float* parts;  // [B, H, parts, D + 2]: sums of the values, largest score, sum of the weights
  int64_t room;  // C
  int heads, head_dim, num_parts;
  float scale;

  __device__ int64_t PositionOf(int64_t b) const {
    const int64_t position = positions[b];
    ELA_DEVICE_CHECK(position >= 0 && position < room, ": position %lld of %lld\n",
                     static_cast<long long>(position), static_cast<long long>(room));
    return position;
  }
  __device__ float* PartOf(int64_t b, int64_t head, int64_t part) const {
    return parts + ((b * heads + head) * num_parts + part) * (head_dim + 2);
  }
};

/// What a warp, and then a block, has seen of its keys: columns lane, lane + 32, ...
template <int C>
struct Seen {
  float sum[C] = {};
  float largest = -INFINITY, weight = 0;

  /// Another set of keys.
  __device__ void Add(const float (&other)[C], float other_largest, float other_weight) {
    if (other_weight == 0) return;
    const float now = fmaxf(largest, other_largest);
    const float mine = largest == -INFINITY ? 0.0f : expf(largest - now);
    const float others = expf(other_largest - now);
#pragma unroll
    for (int i = 0; i < C; ++i) sum[i] = sum[i] * mine + other[i] * others;
    weight = weight * mine + other_weight * others;
    largest = now;
  }
};

template <int C, class T>
__device__ void LoadColumns(float (&x)[C], const T* row, int d) {
#pragma unroll
  for (int i = 0; i < C; ++i) {
    const int c = static_cast<int>(threadIdx.x) % kWarp + i * kWarp;
    x[i] = c < d ? ToFloat(row[c]) : 0.0f;
  }
}

/// Block (part, head, sequence).
template <class T, int C>
__global__ void AttendPart(Problem<T> p) {
  __shared__ float sums[kWarps][kMostHeadDim];
  __shared__ float largest[kWarps], weights[kWarps];
  const int d = p.head_dim, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t b = blockIdx.z, column = static_cast<int64_t>(blockIdx.y) * d;
  const int64_t position = p.PositionOf(b);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPart;
  const int64_t end = min(begin + kPart, position + 1);
  if (begin >= end) return;
  const int64_t width = static_cast<int64_t>(p.heads) * d;
  // The token's own row is not in the cache yet: it is read from k and v, and put there.
  const auto row = [&](T* cache, const Rows<T>& own, int64_t key) -> const T* {
    return key == position ? own[b] + column : cache + (b * p.room + key) * width + column;
  };
  if (end == position + 1) {
    for (int c = static_cast<int>(threadIdx.x); c < d; c += kBlock) {
      const int64_t at = (b * p.room + position) * width + column + c;
      p.keys[at] = p.k[b][column + c];
      p.values[at] = p.v[b][column + c];
    }
  }
  float query[C];
  LoadColumns(query, p.q[b] + column, d);
  Seen<C> seen;
  for (int64_t first = begin + warp * kAtOnce; first < end; first += kWarps * kAtOnce) {
    float score[kAtOnce], value[kAtOnce][C];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t key = min(first + j, end - 1);
      float x[C];
      LoadColumns(x, row(p.keys, p.k, key), d);
      LoadColumns(value[j], row(p.values, p.v, key), d);
      score[j] = 0;
#pragma unroll
      for (int i = 0; i < C; ++i) score[j] = fmaf(query[i], x[i], score[j]);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const float s = WarpSum(score[j]) * p.scale;
      if (first + j < end) seen.Add(value[j], s, 1.0f);
    }
  }
#pragma unroll
  for (int i = 0; i < C; ++i) {
    if (lane + i * kWarp < d) sums[warp][lane + i * kWarp] = seen.sum[i];
  }
  if (lane == 0) largest[warp] = seen.largest, weights[warp] = seen.weight;
  __syncthreads();
  if (warp != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    float other[C];
    LoadColumns(other, sums[w], d);
    seen.Add(other, largest[w], weights[w]);
  }
  float* part = p.PartOf(b, blockIdx.y, blockIdx.x);
#pragma unroll
  for (int i = 0; i < C; ++i) {
    if (lane + i * kWarp < d) part[lane + i * kWarp] = seen.sum[i];
  }
  if (lane == 0) part[d] = seen.largest, part[d + 1] = seen.weight;
}

/// A warp (head, sequence): the parts in order.
template <class T, int C>
__global__ void MergeParts(Problem<T> p) {
  const int d = p.head_dim, lane = static_cast<int>(threadIdx.x);
  const int64_t b = blockIdx.y, parts = p.PositionOf(b) / kPart + 1;
  Seen<C> seen;
  for (int64_t n = 0; n < parts; ++n) {
    const float* part = p.PartOf(b, blockIdx.x, n);
    float other[C];
    LoadColumns(other, part, d);
    seen.Add(other, part[d], part[d + 1]);
  }
  T* y = p.y[b] + static_cast<int64_t>(blockIdx.x) * d;
#pragma unroll
  for (int i = 0; i < C; ++i) {
    const int c = lane + i * kWarp;
    if (c < d) Store(y + c, seen.sum[i] / seen.weight);
  }
}

template <class T, int C>
void Launch(const Context& ctx, const Problem<T>& p, int64_t sequences) {
  const unsigned heads = GridSize(p.heads), b = GridSize(sequences);
  AttendPart<T, C><<<dim3(GridSize(p.num_parts), heads, b), kBlock, 0, StreamOf(ctx)>>>(p);
  MergeParts<T, C><<<dim3(heads, b), kWarp, 0, StreamOf(ctx)>>>(p);
}

}  // namespace

void SoftmaxAttentionDecode(const Context& ctx, Tensor y, Tensor keys, Tensor values, Tensor q,
                            Tensor k, Tensor v, Tensor positions,
                            const SoftmaxAttentionConfig& config) {
  const int64_t sequences = q.dim(0), heads = config.num_heads, d = config.head_dim;
  CheckDecodeShapes(y, keys, values, q, k, v, positions, config);
  constexpr int64_t kMostSequences = 65535;  // of a grid's y and z
  ELA_CHECK(d <= kMostHeadDim && heads <= kMostSequences && sequences <= kMostSequences,
            "%lld sequences, %lld heads of %lld", static_cast<long long>(sequences),
            static_cast<long long>(heads), static_cast<long long>(d));
  if (sequences == 0) return;
  const ArenaScope scope(ctx.scratch);
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        Problem<T> p;
        p.y = Rows<T>(y), p.q = Rows<T>(q), p.k = Rows<T>(k), p.v = Rows<T>(v);
        p.keys = DataOf<T>(keys), p.values = DataOf<T>(values);
        p.positions = positions.as<int32_t>();
        p.room = keys.dim(1);
        p.heads = static_cast<int>(heads), p.head_dim = static_cast<int>(d);
        p.num_parts = static_cast<int>(CeilDiv(p.room, kPart));
        p.parts = TakeScratch<float>(ctx, sequences * heads * p.num_parts * (d + 2));
        p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
        if (d <= 64) {
          Launch<T, 2>(ctx, p, sequences);
        } else if (d <= 128) {
          Launch<T, 4>(ctx, p, sequences);
        } else {
          Launch<T, 8>(ctx, p, sequences);
        }
      },
      y, keys, values, q, k, v);
  CheckLaunch("SoftmaxAttentionDecode");
}

}  // namespace ela::kernels::cuda
