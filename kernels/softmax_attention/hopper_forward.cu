// Forward on Hopper, bf16, head dim 64 or 128. Reads q once, and k and v once a tile of queries
// that meets them (from L2); writes y and lse once.
//
// A block is one warpgroup that loads and 2 (D = 128) or 3 (D = 64) that compute, each 64 queries
// of the block's tile against tiles of 128 keys. Scores and output stay in registers: a warpgroup
// issues the scores of the next tile and the output of this one together, and turns scores into
// weights while products run. Warpgroups take turns to issue, so that one's exponentials overlap
// another's products; a tile of keys that a warpgroup sees nothing of costs it a turn, no products.
//
// Blocks stay on their multiprocessor and draw items, tiles of queries and heads, from a counter.
// Causal: late queries of all heads first, since those see the most keys. Else head by head, so
// that the keys and values in use stay in L2. A tile's sums are of one warpgroup in one order: the
// result does not depend on which block draws it.
#include <cmath>

#include "kernels/cuda_support.h"
#include "kernels/hopper.h"
#include "kernels/softmax_attention/hopper_forward_pipe.cuh"
#include "kernels/softmax_attention/hopper_softmax.cuh"

namespace ela::kernels::cuda::softmax {
namespace {

#ifdef ELA_HOPPER_CODE

/// One head of 64 queries.
template <int kDim>
struct Rows {
  float out[kDim / 2];
  Softmax softmax;
  uint32_t weights[32];
  int row;  // first of this thread's two rows, 8 apart

  __device__ void Start(int tile, int group) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    row = tile * ForwardSize<kDim>::kQueryRows + kGroupRows * group + thread / 32 * 16 +
          thread % 32 / 4;
    softmax = Softmax();
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
__device__ void Write(const ForwardArgs& p, int head, Rows<kDim>& rows) {
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
    for (int j = 2 * r; j < kDim / 2; j += 4) {
      rows.out[j] *= share;
      rows.out[j + 1] *= share;
    }
    if (before != -INFINITY) {
#pragma unroll
      for (int j = 2 * r; j < kDim / 2; j += 4) {
        const float2 was = LoadPair(y + 2 * j - 4 * r);
        rows.out[j] = fmaf(keep, was.x, rows.out[j]);
        rows.out[j + 1] = fmaf(keep, was.y, rows.out[j + 1]);
      }
    }
#pragma unroll
    for (int j = 2 * r; j < kDim / 2; j += 4) {
      StorePair(y + 2 * j - 4 * r, rows.out[j], rows.out[j + 1]);
    }
  }
}

/// A warpgroup that computes. Steps are the block's tiles of keys, of one item after another.
template <int kDim>
class Group {
 public:
  __device__ Group(const ForwardArgs& args, const ForwardMemory<kDim>& memory, int index)
      : p(args), mem(memory), group(index), turns{index} {}

  __device__ void Run() {
    if (group == Size::kGroups - 1) turns.Pass();
    for (;; ++item) {
      WaitBarrier(mem.QueriesFull(item), mem.ItemTurn(item));
      const int count = Uniform(mem.ItemOf(item)->count);
      if (count == 0) return;
      const int begin = Uniform(mem.ItemOf(item)->begin[group]);
      const int own = Uniform(mem.ItemOf(item)->own[group]);
      const int head = Uniform(mem.ItemOf(item)->head);
      PassSteps(begin);
      if (own == 0) {
        ArriveWarp(mem.QueriesFree(item));
        continue;
      }
      Attend(own);
      PassSteps(count - begin - own);
      if (p.y_is_float) {
        Write<float, kDim>(p, head, rows);
      } else {
        Write<__nv_bfloat16, kDim>(p, head, rows);
      }
    }
  }

 private:
  using Size = ForwardSize<kDim>;

  /// Tiles of keys that only other groups see.
  __device__ void PassSteps(int count) {
    for (int i = 0; i < count; ++i, ++step) {
      WaitBarrier(mem.KeysFull(step), mem.Turn(step));
      turns.Wait();
      turns.Pass();
      ArriveWarp(mem.KeysFree(step));
      WaitBarrier(mem.ValuesFull(step), mem.Turn(step));
      ArriveWarp(mem.ValuesFree(step));
    }
  }

  /// Own tiles of keys of the item.
  __device__ void Attend(int count) {
    const uint32_t queries =
        SharedAddress(mem.Queries(item)) + static_cast<uint32_t>(group * kGroupRows * 128);
    rows.Start(Uniform(mem.ItemOf(item)->tile), group);
    float s[64];
    for (int i = 0; i < count; ++i, ++step) {
      WaitBarrier(mem.KeysFull(step), mem.Turn(step));
      const int masked = Uniform(static_cast<int>(*mem.MaskedOf(step))) >> group & 1;
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
      if (masked != 0) MaskScores(s);
      ArriveWarp(mem.KeysFree(step));
      if (i == count - 1) ArriveWarp(mem.QueriesFree(item));
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
  }
  __device__ void MaskScores(float (&s)[64]) const {
    Place places[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      places[r] = mem.QueryPlaces(item)[rows.row % Size::kQueryRows + 8 * r];
      if (!p.causal) places[r].position = INT32_MAX;
    }
    Mask(s, places, mem.KeyPlaces(step));
  }

  const ForwardArgs& p;
  const ForwardMemory<kDim>& mem;
  const int group;
  const Turns<Size::kGroups> turns;
  Rows<kDim> rows;
  int item = 0, step = 0;
};

#endif  // ELA_HOPPER_CODE

template <int kDim>
__global__ void __launch_bounds__(ForwardSize<kDim>::kThreads, 1)
    AttendOnHopper(const __grid_constant__ ForwardArgs p) {
#ifdef ELA_HOPPER_CODE
  using Size = ForwardSize<kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const ForwardMemory<kDim> mem(memory);
  mem.Start();
  if (threadIdx.x < 128) {
    hopper::SetRegisters<Size::kLoaderRegisters, Size::kLaunched>();
    if (threadIdx.x < kWarp) Loader<kDim>(p, mem).Run();
  } else {
    hopper::SetRegisters<Size::kRegisters, Size::kLaunched>();
    Group<kDim>(p, mem, Uniform(static_cast<int>(threadIdx.x) / 128 - 1)).Run();
  }
#endif
}

template <int kDim>
void LaunchForward(const Context& ctx, ForwardArgs p, const Tensor& q, const RowPlaces& queries,
                   const RowPlaces& keys) {
  using Size = ForwardSize<kDim>;
  p.queries = MakeTiles(ctx, queries, kGroupRows, /*queries=*/true, Size::kGroups);
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
  p.heads_together = config.causal ? p.heads : 1;
  ELA_CUDA_CHECK(cudaMemsetAsync(p.next, 0, sizeof(int), StreamOf(ctx)));
  if (config.head_dim == 64) {
    LaunchForward<64>(ctx, p, q, queries, keys);
  } else {
    LaunchForward<128>(ctx, p, q, queries, keys);
  }
}

}  // namespace ela::kernels::cuda::softmax
