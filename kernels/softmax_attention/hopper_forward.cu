// Forward on Hopper, bf16, head dim 64 or 128. Reads q once, and k and v once a tile of queries
// that meets them (from L2); writes y and lse once.
//
// A block is one warpgroup that loads and 2 (D = 128) or 3 (D = 64) that compute, each 64 queries
// of the block's tile against tiles of 128 keys. Scores and output stay in registers: a warpgroup
// issues the scores of the next tile and the output of this one together, and turns scores into
// weights while products run. Warpgroups take turns to issue, so that one's exponentials overlap
// another's products. Blocks stay on their multiprocessor and draw tiles of queries from a counter,
// late ones first, since those see the most keys. A tile's sums are of one warpgroup in one order:
// the result does not depend on which block draws it.
#include <cmath>

#include "kernels/cuda_support.h"
#include "kernels/hopper.h"
#include "kernels/softmax_attention/hopper_softmax.cuh"

namespace ela::kernels::cuda::softmax {
namespace {

struct ForwardArgs {
  CUtensorMap q, k, v;
  void* y;
  float* lse;  // [Tq, H]
  int64_t y_stride;
  Tiles queries, keys;
  const Span* spans;
  int* next;  // item: a tile of queries and a head
  int heads;
  float scale_log2;
  bool causal, y_is_float;
};

template <int kDim>
struct ForwardSize {
  static constexpr int kGroups = kDim == 64 ? 3 : 2;
  static constexpr int kQueryRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kLoaderRegisters = kDim == 64 ? 32 : 40;
  static constexpr int kRegisters = kDim == 64 ? 160 : 232;
  static constexpr int kLaunched = kDim == 64 ? 128 : 168;
  static constexpr int kStages = kDim == 64 ? 4 : 2;
  static constexpr int kTile = kKeyRows * kDim * 2;
  static constexpr int kKeys = kQueryRows * kDim * 2;
  static constexpr int kValues = kKeys + kStages * kTile;
  static constexpr int kPlaces = kValues + kStages * kTile;  // of keys
  static constexpr int kInfo = kPlaces + kStages * kKeyRows * 8;
  static constexpr int kBytes = kInfo + 256 + 1024;  // to align
  static_assert(kBytes <= 227 * 1024);
};

#ifdef ELA_HOPPER_CODE

using hopper::Arrive;
using hopper::SharedAddress;
using hopper::WaitBarrier;

/// What the loader tells the others about an item.
struct Item {
  int tile, head, count;  // count of key tiles; 0: no more items
};

template <int kDim>
struct ForwardMemory : ForwardSize<kDim> {
  using Size = ForwardSize<kDim>;
  unsigned char* base;

  __device__ explicit ForwardMemory(unsigned char* memory)
      : base(memory + (1024 - SharedAddress(memory) % 1024) % 1024) {}
  __device__ unsigned char* Queries() const { return base; }
  __device__ unsigned char* Keys(int i) const {
    return base + Size::kKeys + i % Size::kStages * Size::kTile;
  }
  __device__ unsigned char* Values(int i) const {
    return base + Size::kValues + i % Size::kStages * Size::kTile;
  }
  __device__ Place* Places(int i) const {
    return reinterpret_cast<Place*>(base + Size::kPlaces) + i % Size::kStages * kKeyRows;
  }
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kInfo) + i;
  }
  __device__ uint64_t* QueriesFull() const { return Barrier(0); }
  __device__ uint64_t* QueriesFree() const { return Barrier(1); }
  __device__ uint64_t* KeysFull(int i) const { return Barrier(2 + i % Size::kStages); }
  __device__ uint64_t* KeysFree(int i) const { return Barrier(6 + i % Size::kStages); }
  __device__ uint64_t* ValuesFull(int i) const { return Barrier(10 + i % Size::kStages); }
  __device__ uint64_t* ValuesFree(int i) const { return Barrier(14 + i % Size::kStages); }
  __device__ Item* ItemOf() const { return reinterpret_cast<Item*>(Barrier(18)); }
  /// Whether all pairs of the stage's tiles meet.
  __device__ int* AllMeetOf(int i) const {
    return reinterpret_cast<int*>(Barrier(20)) + i % Size::kStages;
  }
  /// Parity of the i-th use of a stage.
  __device__ static int Turn(int i) { return i / Size::kStages % 2; }

  __device__ void Start() const {
    constexpr int kWarps = 4 * Size::kGroups;
    if (threadIdx.x == 0) {
      hopper::InitBarrier(QueriesFull(), 1);
      hopper::InitBarrier(QueriesFree(), kWarps);
      for (int i = 0; i < Size::kStages; ++i) {
        hopper::InitBarrier(KeysFull(i), 2);
        hopper::InitBarrier(KeysFree(i), kWarps);
        hopper::InitBarrier(ValuesFull(i), 1);
        hopper::InitBarrier(ValuesFree(i), kWarps);
      }
      hopper::FenceProxy();
    }
    __syncthreads();
  }
};

/// By one thread.
template <int kDim>
__device__ void LoadItems(const ForwardArgs& p, const ForwardMemory<kDim>& mem) {
  using Size = ForwardSize<kDim>;
  int step = 0, item = 0;
  for (;;) {
    const int id = atomicAdd(p.next, 1);
    if (id >= p.queries.count * p.heads) break;
    const int tile = p.queries.count - 1 - id / p.heads, head = id % p.heads;
    const Span span = p.spans[tile];
    if (span.count == 0) continue;
    WaitBarrier(mem.QueriesFree(), (item + 1) % 2);
    *mem.ItemOf() = {tile, head, span.count};
    LoadTile<Size::kQueryRows, kDim>(&p.q, mem.QueriesFull(), mem.Queries(), head, tile);
    ++item;
    for (int key = span.end - 1; key >= span.begin; --key, ++step) {
      const bool all = AllMeet(p.queries, tile, p.keys, key, p.causal);
      WaitBarrier(mem.KeysFree(step), mem.Turn(step) ^ 1);
      *mem.AllMeetOf(step) = all;
      LoadPlaces(p.keys, mem.KeysFull(step), mem.Places(step), key);
      LoadTile<kKeyRows, kDim>(&p.k, mem.KeysFull(step), mem.Keys(step), head, key);
      WaitBarrier(mem.ValuesFree(step), mem.Turn(step) ^ 1);
      LoadTile<kKeyRows, kDim>(&p.v, mem.ValuesFull(step), mem.Values(step), head, key);
    }
  }
  WaitBarrier(mem.QueriesFree(), (item + 1) % 2);
  mem.ItemOf()->count = 0;
  Arrive(mem.QueriesFull());
}

/// One head of 64 queries.
template <int kDim>
struct Rows {
  float out[kDim / 2];
  Softmax softmax;
  uint32_t weights[32];
  Place places[2];
  int row;  // first of this thread's two rows, 8 apart

  __device__ Rows(const ForwardArgs& p, int tile, int group) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    row = tile * ForwardSize<kDim>::kQueryRows + 64 * group + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) places[r] = QueryPlace(p.queries, row + 8 * r, p.causal);
  }

  __device__ static void IssueScores(float (&s)[64], uint32_t queries, uint32_t keys) {
    const Operand<ForwardSize<kDim>::kQueryRows> a(queries);
    const Operand<kKeyRows> b(keys);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      Wgmma<false, false>(s, a.AlongRows(step), b.AlongRows(step), step > 0);
    }
    hopper::WgmmaCommit();
  }
  __device__ void IssueOutput(uint32_t values, bool first) {
    const Operand<kKeyRows> b(values);
#pragma unroll
    for (int step = 0; step < kKeyRows / 16; ++step) {
      Wgmma<true>(out, weights + 4 * step, b.OverRows(step), !first || step > 0);
    }
    hopper::WgmmaCommit();
  }
  __device__ void TakeWeights(const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) weights[i] = hopper::Pack(s[2 * i], s[2 * i + 1]);
  }
  __device__ void Shrink(const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out[i] *= by[i % 4 / 2];
  }
};

template <class T>
__device__ float2 LoadPair(const T* from) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float2*>(from);
  } else {
    return hopper::Unpack(*reinterpret_cast<const uint32_t*>(from));
  }
}
template <class T>
__device__ void StorePair(T* to, float x, float y) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float2*>(to) = make_float2(x, y);
  } else {
    *reinterpret_cast<uint32_t*>(to) = hopper::Pack(x, y);
  }
}

/// Folds the rows into y and lse: what was seen before counts as one key of score lse and value y.
template <class T, int kDim>
__device__ void Write(const ForwardArgs& p, int head, const Rows<kDim>& rows) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  float seen[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = rows.row + 8 * r;
    seen[r] = row < p.queries.total ? p.lse[row * p.heads + head] : 0.0f;
  }
  __syncwarp();  // every thread of a row has read its lse
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = rows.row + 8 * r;
    const float sum = rows.softmax.sum[r];
    if (row >= p.queries.total || sum == 0.0f) continue;  // has met nothing
    T* y = static_cast<T*>(p.y) + row * p.y_stride + head * kDim + 2 * t;
    const float here = (rows.softmax.base[r] * p.scale_log2 + log2f(sum)) * kLn2;
    const float before = seen[r], largest = fmaxf(before, here);
    const float old = before == -INFINITY ? 0.0f : expf(before - largest);
    const float mine = before == -INFINITY ? 1.0f : expf(here - largest);
    const float all = old + mine, share = mine / (all * sum), keep = old / all;
    if (t == 0) p.lse[row * p.heads + head] = before == -INFINITY ? here : largest + logf(all);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      float2 pair = {rows.out[4 * j + 2 * r] * share, rows.out[4 * j + 2 * r + 1] * share};
      if (before != -INFINITY) {
        const float2 was = LoadPair(y + 8 * j);
        pair.x = fmaf(keep, was.x, pair.x);
        pair.y = fmaf(keep, was.y, pair.y);
      }
      StorePair(y + 8 * j, pair.x, pair.y);
    }
  }
}

template <int kDim>
__device__ void ComputeItems(const ForwardArgs& p, const ForwardMemory<kDim>& mem, int group) {
  using Size = ForwardSize<kDim>;
  const Turns<Size::kGroups> turns{group};
  if (group == Size::kGroups - 1) turns.Pass();
  const uint32_t queries = SharedAddress(mem.Queries()) + static_cast<uint32_t>(group * 64 * 128);
  int step = 0;
  for (int item = 0;; ++item) {
    WaitBarrier(mem.QueriesFull(), item % 2);
    const Item now = *mem.ItemOf();
    const int count = Uniform(now.count);
    if (count == 0) return;
    Rows<kDim> rows(p, now.tile, group);
    float s[64];
    for (int i = 0; i < count; ++i, ++step) {
      WaitBarrier(mem.KeysFull(step), mem.Turn(step));
      const bool all_meet = Uniform(*mem.AllMeetOf(step)) != 0;
      turns.Wait();
      hopper::WgmmaFence();
      Rows<kDim>::IssueScores(s, queries, SharedAddress(mem.Keys(step)));
      if (i > 0) {
        WaitBarrier(mem.ValuesFull(step - 1), mem.Turn(step - 1));
        rows.IssueOutput(SharedAddress(mem.Values(step - 1)), i == 1);
        turns.Pass();
        hopper::WgmmaWait<1>();
      } else {
        turns.Pass();
        hopper::WgmmaWait<0>();
      }
      Pin(s);
      if (!all_meet) Mask(s, rows.places, mem.Places(step));
      ArriveWarp(mem.KeysFree(step));
      if (i == count - 1) ArriveWarp(mem.QueriesFree());
      float shrink[2];
      const bool shrinks = rows.softmax.Fold(s, p.scale_log2, shrink);
      if (i > 0) {
        hopper::WgmmaWait<0>();
        Pin(rows.out);
        ArriveWarp(mem.ValuesFree(step - 1));
        if (shrinks) rows.Shrink(shrink);
      }
      rows.TakeWeights(s);
    }
    WaitBarrier(mem.ValuesFull(step - 1), mem.Turn(step - 1));
    hopper::WgmmaFence();
    rows.IssueOutput(SharedAddress(mem.Values(step - 1)), count == 1);
    rows.softmax.Finish();
    hopper::WgmmaWait<0>();
    Pin(rows.out);
    ArriveWarp(mem.ValuesFree(step - 1));
    if (p.y_is_float) {
      Write<float, kDim>(p, now.head, rows);
    } else {
      Write<__nv_bfloat16, kDim>(p, now.head, rows);
    }
  }
}

#endif  // ELA_HOPPER_CODE

template <int kDim>
__global__ void __launch_bounds__(ForwardSize<kDim>::kThreads, 1)
    AttendOnHopper(const __grid_constant__ ForwardArgs p) {
#ifdef ELA_HOPPER_CODE
  using Size = ForwardSize<kDim>;
  extern __shared__ unsigned char memory[];
  const ForwardMemory<kDim> mem(memory);
  mem.Start();
  if (threadIdx.x < 128) {
    hopper::SetRegisters<Size::kLoaderRegisters, Size::kLaunched>();
    if (threadIdx.x == 0) LoadItems<kDim>(p, mem);
  } else {
    hopper::SetRegisters<Size::kRegisters, Size::kLaunched>();
    ComputeItems<kDim>(p, mem, Uniform(static_cast<int>(threadIdx.x) / 128 - 1));
  }
#endif
}

template <int kDim>
void LaunchForward(const Context& ctx, ForwardArgs p, const Tensor& q, const RowPlaces& queries,
                   const RowPlaces& keys) {
  using Size = ForwardSize<kDim>;
  p.queries = MakeTiles(ctx, queries, Size::kQueryRows, /*queries=*/true);
  p.keys = MakeTiles(ctx, keys, kKeyRows, /*queries=*/false);
  p.spans = FindSpans(ctx, p.queries, p.keys, p.causal);
  p.q = TensorMapOf(q, Size::kQueryRows);
  ELA_CUDA_CHECK(cudaFuncSetAttribute(AttendOnHopper<kDim>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, Size::kBytes));
  const auto blocks = static_cast<unsigned>(NumMultiprocessors(ctx));
  AttendOnHopper<kDim><<<blocks, Size::kThreads, Size::kBytes, StreamOf(ctx)>>>(p);
  CheckLaunch("AttendOnHopper");
}

}  // namespace

void RunHopperForward(const Context& ctx, const Tensor& y, const Tensor& lse, const Tensor& q,
                      const Tensor& k, const Tensor& v, const RowPlaces& queries,
                      const RowPlaces& keys, const SoftmaxAttentionConfig& config) {
  const ArenaScope scope(ctx.scratch);
  ForwardArgs p = {};
  p.k = TensorMapOf(k, kKeyRows);
  p.v = TensorMapOf(v, kKeyRows);
  p.y = y.data();
  p.y_stride = y.stride();
  p.y_is_float = y.dtype() == DType::kF32;
  p.lse = lse.as<float>();
  p.next = TakeScratch<int>(ctx, 1);
  p.heads = static_cast<int>(config.num_heads);
  p.scale_log2 = static_cast<float>(1 / std::sqrt(static_cast<double>(config.head_dim))) * kLog2E;
  p.causal = config.causal;
  ELA_CUDA_CHECK(cudaMemsetAsync(p.next, 0, sizeof(int), StreamOf(ctx)));
  if (config.head_dim == 64) {
    LaunchForward<64>(ctx, p, q, queries, keys);
  } else {
    LaunchForward<128>(ctx, p, q, queries, keys);
  }
}

}  // namespace ela::kernels::cuda::softmax
