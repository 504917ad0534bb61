// Chooses between the Hopper kernels (hopper.h) and the portable ones here: any card, float or
// bf16, any head dim up to 256. There a warp owns a row (a query; a key in the gradients of k and
// v) and meets the rows of the other side in tiles of 32 from shared memory, a lane each; tiles
// that meet no row of a block are passed over. Every sum is of one warp in one order. Arithmetic is
// float.
#include <cmath>

#include "kernels/device_code.cuh"
#include "kernels/softmax_attention/hopper.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kTile = kWarp;
constexpr int kWarps = kBlock / kWarp;
constexpr int kMostHeadDim = 256;

/// Rows [T, H, D] of either type.
struct HeadRows {
  void* data = nullptr;
  int64_t stride = 0;
  bool is_float = true;

  HeadRows() = default;
  explicit HeadRows(const Tensor& x)
      : data(x.data()), stride(x.stride()), is_float(x.dtype() == DType::kF32) {
    ELA_CHECK(is_float || x.dtype() == DType::kBf16, "dtype %d", static_cast<int>(x.dtype()));
  }
  __device__ float Get(int64_t row, int64_t at) const {
    const int64_t i = row * stride + at;
    return is_float ? static_cast<const float*>(data)[i]
                    : __bfloat162float(static_cast<const bf16*>(data)[i]);
  }
  __device__ void Set(int64_t row, int64_t at, float value) const {
    const int64_t i = row * stride + at;
    if (is_float) {
      static_cast<float*>(data)[i] = value;
    } else {
      static_cast<bf16*>(data)[i] = __float2bfloat16(value);
    }
  }
};

using Places = softmax::RowPlaces;

/// What the places of up to 32 rows span.
struct Range {
  int32_t first_document, last_document, first_position, last_position;
};

struct Problem {
  HeadRows q, k, v, dy;
  HeadRows y, dq, dk, dv;
  float* lse;  // [Tq, H]
  const float* delta;
  Places queries, keys;
  const Range* query_ranges;  // of each 32 rows
  const Range* key_ranges;
  int heads, head_dim;
  float scale;
  bool causal;
};

__device__ int LaneOf() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ int WarpOf() { return static_cast<int>(threadIdx.x) / kWarp; }

__device__ bool Meet(const Problem& p, int64_t query, int64_t key) {
  return p.queries.document[query] == p.keys.document[key] &&
         (!p.causal || p.keys.position[key] <= p.queries.position[query]);
}

__device__ bool MayMeet(const Problem& p, const Range& query, const Range& key) {
  return query.first_document <= key.last_document && key.first_document <= query.last_document &&
         (!p.causal || key.first_position <= query.last_position);
}

__global__ void FindRanges(Range* ranges, Places places) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  const int64_t at = min(row, places.count - 1);
  const int32_t document = places.document[at], position = places.position[at];
  const Range range = {
      __reduce_min_sync(kAllLanes, document), __reduce_max_sync(kAllLanes, document),
      __reduce_min_sync(kAllLanes, position), __reduce_max_sync(kAllLanes, position)};
  if (threadIdx.x == 0) ranges[blockIdx.x] = range;
}

/// Shared memory of a block: two tiles of the other side and two rows a warp, padded against bank
/// conflicts.
struct Shared {
  float* tile[2];
  float* own[2];
  int pitch;

  __device__ Shared(float* memory, int d) : pitch(d + 1) {
    tile[0] = memory;
    tile[1] = tile[0] + kTile * pitch;
    own[0] = tile[1] + kTile * pitch + WarpOf() * 2 * pitch;
    own[1] = own[0] + pitch;
  }
  static size_t Bytes(int d) {
    return static_cast<size_t>(2 * (kTile + kWarps) * (d + 1)) * sizeof(float);
  }
  /// By the block; rows from `count` on are left as they are.
  __device__ void LoadTile(int which, const HeadRows& x, int64_t begin, int64_t count, int head,
                           int d) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * d; i += kBlock) {
      const int row = i / d, column = i - row * d;
      if (begin + row < count) {
        tile[which][row * pitch + column] =
            x.Get(begin + row, static_cast<int64_t>(head) * d + column);
      }
    }
  }
  /// By a warp, its own row.
  __device__ void LoadOwn(int which, const HeadRows& x, int64_t row, int head, int d) {
    for (int c = LaneOf(); c < d; c += kWarp) {
      own[which][c] = x.Get(row, static_cast<int64_t>(head) * d + c);
    }
  }
  /// Of the warp's row and the lane's row of the tile.
  __device__ float Dot(int which, int d) const {
    const float* row = tile[which] + LaneOf() * pitch;
    float sum = 0;
    for (int c = 0; c < d; ++c) sum = fmaf(own[which][c], row[c], sum);
    return sum;
  }
};

/// acc[i] += sum over the tile's rows of weight (a lane each) times column lane + 32 i.
template <int C>
__device__ void AddWeighted(float (&acc)[C], float weight, const float* tile, int pitch, int d) {
  for (int j = 0; j < kTile; ++j) {
    const float w = __shfl_sync(kAllLanes, weight, j);
    if (w == 0) continue;  // of every lane; also spares what rows past the end hold
    const float* row = tile + j * pitch + LaneOf();
#pragma unroll
    for (int i = 0; i < C; ++i) {
      if (LaneOf() + i * kWarp < d) acc[i] = fmaf(w, row[i * kWarp], acc[i]);
    }
  }
}

/// body(first row of the tile) for the tiles that may meet the block's own 8 rows.
template <class Body>
__device__ void ForEachTile(const Problem& p, bool own_queries, const Body& body) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarps;
  const int64_t others = own_queries ? p.keys.count : p.queries.count;
  const Range mine = (own_queries ? p.query_ranges : p.key_ranges)[own / kTile];
  for (int64_t tile = 0; tile * kTile < others; ++tile) {
    const Range other = (own_queries ? p.key_ranges : p.query_ranges)[tile];
    if (!(own_queries ? MayMeet(p, mine, other) : MayMeet(p, other, mine))) continue;
    __syncthreads();
    body(tile * kTile);
  }
}

template <int C>
__global__ void Attend(Problem p) {
  extern __shared__ float memory[];
  const int d = p.head_dim, head = static_cast<int>(blockIdx.y), lane = LaneOf();
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kWarps + WarpOf();
  const bool valid = query < p.queries.count;
  Shared shared(memory, d);
  float acc[C] = {}, largest = -INFINITY, sum = 0;
  if (valid) {
    shared.LoadOwn(0, p.q, query, head, d);
    largest = p.lse[query * p.heads + head];
    sum = largest == -INFINITY ? 0.0f : 1.0f;
    for (int i = 0; i < C; ++i) {
      const int c = lane + i * kWarp;
      if (c < d) acc[i] = p.y.Get(query, static_cast<int64_t>(head) * d + c);
    }
  }
  bool met = false;
  ForEachTile(p, /*own_queries=*/true, [&](int64_t first) {
    shared.LoadTile(0, p.k, first, p.keys.count, head, d);
    shared.LoadTile(1, p.v, first, p.keys.count, head, d);
    __syncthreads();
    const int64_t key = first + lane;
    const bool meets = valid && key < p.keys.count && Meet(p, query, key);
    if (!__any_sync(kAllLanes, meets)) return;
    const float score = meets ? shared.Dot(0, d) * p.scale : -INFINITY;
    const float now = fmaxf(largest, WarpMax(score));
    // A score of NaN must reach the sum; a row that has seen -inf alone stays empty.
    const float weight = !meets || score == -INFINITY ? 0.0f : expf(score - now);
    const float before = largest == -INFINITY ? 0.0f : expf(largest - now);
    sum = sum * before + WarpSum(weight);
    for (int i = 0; i < C; ++i) acc[i] *= before;
    AddWeighted(acc, weight, shared.tile[1], shared.pitch, d);
    largest = now;
    met = true;
  });
  if (!met) return;
  if (lane == 0) p.lse[query * p.heads + head] = largest + logf(sum);
  for (int i = 0; i < C; ++i) {
    const int c = lane + i * kWarp;
    if (c < d) p.y.Set(query, static_cast<int64_t>(head) * d + c, acc[i] / sum);
  }
}

/// The softmax weight and the gradient of the score of a pair.
__device__ void Gradients(const Problem& p, float score, float dp, int64_t query, int head,
                          float* weight, float* dscore) {
  const int64_t at = query * p.heads + head;
  *weight = expf(score * p.scale - p.lse[at]);
  *dscore = p.scale * *weight * (dp - p.delta[at]);
}

template <int C>
__device__ void AddTo(const HeadRows& out, int64_t row, int head, int d, const float (&acc)[C]) {
  for (int i = 0; i < C; ++i) {
    const int c = LaneOf() + i * kWarp;
    const int64_t at = static_cast<int64_t>(head) * d + c;
    if (c < d) out.Set(row, at, out.Get(row, at) + acc[i]);
  }
}

template <int C>
__global__ void QueryGradients(Problem p) {
  extern __shared__ float memory[];
  const int d = p.head_dim, head = static_cast<int>(blockIdx.y);
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kWarps + WarpOf();
  const bool valid = query < p.queries.count;
  Shared shared(memory, d);
  float dq[C] = {};
  if (valid) {
    shared.LoadOwn(0, p.q, query, head, d);
    shared.LoadOwn(1, p.dy, query, head, d);
  }
  ForEachTile(p, /*own_queries=*/true, [&](int64_t first) {
    shared.LoadTile(0, p.k, first, p.keys.count, head, d);
    shared.LoadTile(1, p.v, first, p.keys.count, head, d);
    __syncthreads();
    const int64_t key = first + LaneOf();
    const bool meets = valid && key < p.keys.count && Meet(p, query, key);
    if (!__any_sync(kAllLanes, meets)) return;
    float weight = 0, dscore = 0;
    if (meets) Gradients(p, shared.Dot(0, d), shared.Dot(1, d), query, head, &weight, &dscore);
    AddWeighted(dq, dscore, shared.tile[0], shared.pitch, d);
  });
  if (valid) AddTo(p.dq, query, head, d, dq);
}

template <int C>
__global__ void KeyGradients(Problem p) {
  extern __shared__ float memory[];
  const int d = p.head_dim, head = static_cast<int>(blockIdx.y);
  const int64_t key = static_cast<int64_t>(blockIdx.x) * kWarps + WarpOf();
  const bool valid = key < p.keys.count;
  Shared shared(memory, d);
  float dk[C] = {}, dv[C] = {};
  if (valid) {
    shared.LoadOwn(0, p.k, key, head, d);
    shared.LoadOwn(1, p.v, key, head, d);
  }
  ForEachTile(p, /*own_queries=*/false, [&](int64_t first) {
    shared.LoadTile(0, p.q, first, p.queries.count, head, d);
    shared.LoadTile(1, p.dy, first, p.queries.count, head, d);
    __syncthreads();
    const int64_t query = first + LaneOf();
    const bool meets = valid && query < p.queries.count && Meet(p, query, key);
    if (!__any_sync(kAllLanes, meets)) return;
    float weight = 0, dscore = 0;
    if (meets) Gradients(p, shared.Dot(0, d), shared.Dot(1, d), query, head, &weight, &dscore);
    AddWeighted(dk, dscore, shared.tile[0], shared.pitch, d);
    AddWeighted(dv, weight, shared.tile[1], shared.pitch, d);
  });
  if (!valid) return;
  AddTo(p.dk, key, head, d, dk);
  AddTo(p.dv, key, head, d, dv);
}

Places PlacesOf(const Tensor& documents, const Tensor& positions) {
  CheckShape("positions", positions, documents.dim(0), 1);
  return {documents.as<int32_t>(), positions.as<int32_t>(), documents.dim(0)};
}

Range* RangesOf(const Context& ctx, const Places& places) {
  const int64_t tiles = CeilDiv(places.count, kTile);
  Range* ranges = TakeScratch<Range>(ctx, tiles);
  FindRanges<<<GridSize(tiles), kTile, 0, StreamOf(ctx)>>>(ranges, places);
  CheckLaunch("FindRanges");
  return ranges;
}

void CheckInputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse,
                 const Places& queries, const Places& keys, const SoftmaxAttentionConfig& config) {
  const int64_t width = config.num_heads * config.head_dim;
  ELA_CHECK(config.head_dim <= kMostHeadDim, "head dim %lld",
            static_cast<long long>(config.head_dim));
  CheckShape("q", q, queries.count, width);
  CheckShape("k", k, keys.count, width);
  CheckShape("v", v, keys.count, width);
  CheckShape("lse", lse, queries.count, config.num_heads);
  ELA_CHECK(lse.dense());
}

/// Scratch: the ranges.
Problem MakeProblem(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                    const Tensor& lse, const Places& queries, const Places& keys,
                    const SoftmaxAttentionConfig& config) {
  Problem p = {};
  p.q = HeadRows(q);
  p.k = HeadRows(k);
  p.v = HeadRows(v);
  p.lse = lse.as<float>();
  p.queries = queries;
  p.keys = keys;
  p.query_ranges = RangesOf(ctx, queries);
  p.key_ranges = RangesOf(ctx, keys);
  p.heads = static_cast<int>(config.num_heads);
  p.head_dim = static_cast<int>(config.head_dim);
  p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config.head_dim)));
  p.causal = config.causal;
  return p;
}

using Kernel = void (*)(Problem);

void Launch(const Context& ctx, const char* name, Kernel kernel, const Problem& p, int64_t rows) {
  const size_t bytes = Shared::Bytes(p.head_dim);
  ELA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)));
  const dim3 grid(GridSize(CeilDiv(rows, kWarps)), GridSize(p.heads));
  kernel<<<grid, kBlock, bytes, StreamOf(ctx)>>>(p);
  CheckLaunch(name);
}

/// The kernel for a head dim of up to 64, 128 or 256.
Kernel ForHeadDim(int d, Kernel small, Kernel middle, Kernel large) {
  return d <= 64 ? small : d <= 128 ? middle : large;
}

}  // namespace

void SoftmaxAttentionForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                             Tensor q_document, Tensor k_document, Tensor q_position,
                             Tensor k_position, const SoftmaxAttentionConfig& config) {
  const Places queries = PlacesOf(q_document, q_position), keys = PlacesOf(k_document, k_position);
  if (queries.count == 0 || keys.count == 0) return;
  CheckShape("y", y, queries.count, config.num_heads * config.head_dim);
  CheckInputs(q, k, v, lse, queries, keys, config);
  if (softmax::HopperApplies({q, k, v}, {y}, config)) {
    softmax::RunHopperForward(ctx, y, lse, q, k, v, queries, keys, config);
    return;
  }
  const ArenaScope scope(ctx.scratch);
  Problem p = MakeProblem(ctx, q, k, v, lse, queries, keys, config);
  p.y = HeadRows(y);
  Launch(ctx, "Attend", ForHeadDim(p.head_dim, Attend<2>, Attend<4>, Attend<8>), p, queries.count);
}

void SoftmaxAttentionBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy,
                              Tensor q, Tensor k, Tensor v, Tensor lse, Tensor delta,
                              Tensor q_document, Tensor k_document, Tensor q_position,
                              Tensor k_position, const SoftmaxAttentionConfig& config) {
  const Places queries = PlacesOf(q_document, q_position), keys = PlacesOf(k_document, k_position);
  if (queries.count == 0 || keys.count == 0) return;
  const int64_t width = config.num_heads * config.head_dim;
  CheckInputs(q, k, v, lse, queries, keys, config);
  CheckShape("dq", dq, queries.count, width);
  CheckShape("dk", dk, keys.count, width);
  CheckShape("dv", dv, keys.count, width);
  CheckShape("dy", dy, queries.count, width);
  CheckShape("delta", delta, queries.count, config.num_heads);
  ELA_CHECK(delta.dense());
  if (softmax::HopperApplies({q, k, v, dy}, {dq, dk, dv}, config)) {
    softmax::RunHopperBackward(ctx, {dq, dk, dv, dy, q, k, v, lse, delta}, queries, keys, config);
    return;
  }
  const ArenaScope scope(ctx.scratch);
  Problem p = MakeProblem(ctx, q, k, v, lse, queries, keys, config);
  p.dy = HeadRows(dy);
  p.dq = HeadRows(dq);
  p.dk = HeadRows(dk);
  p.dv = HeadRows(dv);
  p.delta = delta.as<float>();
  Launch(ctx, "QueryGradients",
         ForHeadDim(p.head_dim, QueryGradients<2>, QueryGradients<4>, QueryGradients<8>), p,
         queries.count);
  Launch(ctx, "KeyGradients",
         ForHeadDim(p.head_dim, KeyGradients<2>, KeyGradients<4>, KeyGradients<8>), p, keys.count);
}

}  // namespace ela::kernels::cuda
