// Backward on Hopper, bf16, head dim 64 or 128: with P = 2^(scale S - lse), dS = P (dP - delta):
//
//   dV += P^T dY,  dK += scale dS^T Q,  dQ += scale dS K,  S = Q K^T,  dP = dY V^T.
//
// A block is one warpgroup that loads and stores and two that compute, each 64 of the block's tile
// of 128 keys against tiles of 64 (D = 128) or 128 (D = 64) queries, late ones first. S^T and dP^T
// come out of products as the next products take P^T and dS^T, in registers; dK and dV stay there
// too. dS goes through shared memory for dQ, of which each warpgroup computes a half. A tile's part
// of dQ is added to a sum in global memory by the copy engine, and tiles of keys add in their
// order: one waits until those before it have. So results are equal bit for bit. Blocks draw tiles
// of keys in that order, hence the one that is waited for is at work or done.
#include "kernels/cuda_support.h"
#include "kernels/softmax_attention/hopper_backward_pipe.cuh"

namespace ela::kernels::cuda::softmax {
namespace {

constexpr int kThreads = 128 * (1 + kGroups);

#ifdef ELA_HOPPER_CODE

__device__ inline void SyncGroups() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

/// 64 keys of one head.
template <int kDim>
struct Keys {
  static constexpr int kQueryRows = BackwardSize<kDim>::kQueryRows;
  static constexpr int kScores = kQueryRows / 2;  // registers of an accumulator [64][kQueryRows]
  float dk[kDim / 2], dv[kDim / 2];
  int32_t document[2], position[2];

  __device__ void Start(const BackwardArgs& p, int row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Place place = p.keys.places[row + 8 * r];
      document[r] = place.document;
      position[r] = place.position;
    }
  }

  /// d = rows A^T, of own rows of a tile of keys and all rows of a tile of queries.
  __device__ static void IssueScores(float (&d)[kScores], uint32_t own, uint32_t queries) {
    const Operand<kKeyRows> a(own);
    const Operand<kQueryRows> b(queries);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      Wgmma<false, false>(d, a.AlongRows(step), b.AlongRows(step), step > 0);
    }
    hopper::WgmmaCommit();
  }
  /// d (+)= weights A, summed over the rows of a tile of queries.
  __device__ static void IssueSums(float (&d)[kDim / 2], const uint32_t* weights, uint32_t queries,
                                   bool first) {
    const Operand<kQueryRows> b(queries);
#pragma unroll
    for (int step = 0; step < kQueryRows / 16; ++step) {
      Wgmma<true>(d, weights + 4 * step, b.OverRows(step), !first || step > 0);
    }
    hopper::WgmmaCommit();
  }
  /// A half of dQ = dS K: of the columns (D = 128) or the rows (D = 64).
  __device__ static void IssueQueries(float (&d)[32], uint32_t ds, uint32_t keys, int group) {
    constexpr int kPanel = kKeyRows * 128;
    const Operand<kKeyRows> a(ds + (kDim == 64 ? static_cast<uint32_t>(group * kPanel) : 0));
    const Operand<kKeyRows> b(keys + (kDim == 64 ? 0 : static_cast<uint32_t>(group * kPanel)));
#pragma unroll
    for (int step = 0; step < kKeyRows / 16; ++step) {
      Wgmma<true, true>(d, a.OverRows(step), b.OverRows(step), step > 0);
    }
    hopper::WgmmaCommit();
  }

  /// Scores to weights; of pairs that don't meet to 0.
  __device__ void Weigh(float (&s)[kScores], const BackwardArgs& p, const float2* statistics,
                        const Place* places, bool all_meet) const {
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int j = 0; j < kQueryRows / 8; ++j) {
      const float4 two = *reinterpret_cast<const float4*>(statistics + 8 * j + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[4 * j + i] = hopper::Exp2(fmaf(s[4 * j + i], p.scale_log2, -(i % 2 ? two.z : two.x)));
      }
    }
    if (all_meet) return;
#pragma unroll
    for (int j = 0; j < kQueryRows / 8; ++j) {
      const int4 two = *reinterpret_cast<const int4*>(places + 8 * j + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Place query = {i % 2 ? two.z : two.x, !p.causal ? INT32_MAX : i % 2 ? two.w : two.y};
        if (!Meet(query, document[i / 2], position[i / 2])) s[4 * j + i] = 0.0f;
      }
    }
  }
};

/// Weights P and dP to P and dS as operands.
template <int N>
__device__ void TakeGradients(uint32_t (&weights)[N / 2], uint32_t (&ds)[N / 2],
                              const float (&s)[N], const float (&dp)[N], const float2* statistics) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    const float4 two = *reinterpret_cast<const float4*>(statistics + 8 * j + 2 * t);
#pragma unroll
    for (int i = 4 * j; i < 4 * j + 4; i += 2) {
      weights[i / 2] = hopper::Pack(s[i], s[i + 1]);
      ds[i / 2] = hopper::Pack(s[i] * (dp[i] - two.y), s[i + 1] * (dp[i + 1] - two.w));
    }
  }
}

/// dS^T, operands of rows row and row + 8, into panels [128 keys][64 queries].
template <int N>
__device__ void StoreDs(uint32_t to, int row, const uint32_t (&ds)[N]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < N / 2; ++j) {
    const uint32_t at = to + static_cast<uint32_t>(j / 8 * kKeyRows * 128 + row * 128 +
                                                   (((j % 8) ^ (row & 7)) << 4) + 4 * t);
    hopper::StoreShared(at, ds[2 * j]);
    hopper::StoreShared(at + 8 * 128, ds[2 * j + 1]);
  }
}

__device__ inline void StoreSums(unsigned char* to, const float (&d)[32], int group, int thread) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    *reinterpret_cast<float4*>(to + ((group * 8 + j) * 128 + thread) * 16) =
        make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
  }
}

/// Adds scale d to 64 keys' gradients of a head, of which `row` and row + 8 are this thread's. A
/// row is read before it is written, so that it is waited for once.
template <int kDim>
__device__ void AddKeyGradient(const Gradient& to, int64_t row, int64_t total, int head,
                               float scale, const float (&d)[kDim / 2]) {
  const int64_t column = int64_t{head} * kDim + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r >= total) continue;
    float2 was[kDim / 8];
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) was[j] = to.Pair(row + 8 * r, column + 8 * j);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      to.SetPair(row + 8 * r, column + 8 * j, fmaf(d[4 * j + 2 * r], scale, was[j].x),
                 fmaf(d[4 * j + 2 * r + 1], scale, was[j].y));
    }
  }
}

template <int kDim>
__device__ void ComputeItems(const BackwardArgs& p, const BackwardMemory<kDim>& mem, int group) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int row = 64 * group + thread / 32 * 16 + thread % 32 / 4;
  const auto own = static_cast<uint32_t>(group * 64 * 128);
  const uint32_t keys = SharedAddress(mem.Keys()), values = SharedAddress(mem.Values());
  int step = 0;
  for (int item = 0;; ++item) {
    WaitBarrier(mem.KeysFull(), item % 2);
    const GradientItem now = *mem.ItemOf();
    const int count = Uniform(now.count);
    if (count == 0) return;
    Keys<kDim> rows;
    rows.Start(p, now.tile * kKeyRows + row);
    for (int i = 0; i < count; ++i, ++step) {
      const uint32_t queries = SharedAddress(mem.Queries(step)), dy = SharedAddress(mem.Dy(step));
      float s[Keys<kDim>::kScores], dp[Keys<kDim>::kScores];
      WaitBarrier(mem.QueriesFull(step), mem.Turn(step));
      const bool all_meet = Uniform(*mem.AllMeetOf(step)) != 0;
      hopper::WgmmaFence();
      Keys<kDim>::IssueScores(s, keys + own, queries);
      WaitBarrier(mem.DyFull(step), mem.Turn(step));
      Keys<kDim>::IssueScores(dp, values + own, dy);
      hopper::WgmmaWait<1>();
      Pin(s);
      rows.Weigh(s, p, mem.Statistics(step), mem.Places(step), all_meet);
      hopper::WgmmaWait<0>();
      Pin(dp);
      uint32_t weights[Keys<kDim>::kScores / 2], ds[Keys<kDim>::kScores / 2];
      TakeGradients(weights, ds, s, dp, mem.Statistics(step));
      StoreDs(SharedAddress(mem.Ds(step)), row, ds);
      hopper::WgmmaFence();
      Keys<kDim>::IssueSums(rows.dv, weights, dy, i == 0);
      hopper::FenceProxy();
      SyncGroups();  // dS of both; and both have read that of two steps before
      float dq[32];
      hopper::WgmmaFence();
      Keys<kDim>::IssueQueries(dq, SharedAddress(mem.Ds(step)), keys, group);
      Keys<kDim>::IssueSums(rows.dk, ds, queries, i == 0);
      hopper::WgmmaWait<1>();
      Pin(dq);
      ArriveWarp(mem.DyFree(step));
      WaitBarrier(mem.SumsFree(step), mem.LastSumsTurn(step));
      StoreSums(mem.Sums(step), dq, group, thread);
      hopper::FenceProxy();
      ArriveWarp(mem.SumsFull(step));
      hopper::WgmmaWait<0>();
      Pin(rows.dk);
      Pin(rows.dv);
      ArriveWarp(mem.QueriesFree(step));
    }
    ArriveWarp(mem.KeysFree());
    const int64_t first = int64_t{now.tile} * kKeyRows + row;
    AddKeyGradient<kDim>(p.dk, first, p.keys.total, now.head, p.scale, rows.dk);
    AddKeyGradient<kDim>(p.dv, first, p.keys.total, now.head, 1.0f, rows.dv);
  }
}

#endif  // ELA_HOPPER_CODE

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    GradientsOnHopper(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ __align__(1024) unsigned char memory[];
  const BackwardMemory<kDim> mem(memory);
  mem.Start();
  if (threadIdx.x < 128) {
    hopper::SetRegisters<40, 168>();
    if (threadIdx.x == 0) LoadItems<kDim>(p, mem);
    if (threadIdx.x == 32 || threadIdx.x == 64) AddItems<kDim>(p, mem, threadIdx.x == 64);
  } else {
    hopper::SetRegisters<232, 168>();
    ComputeItems<kDim>(p, mem, Uniform(static_cast<int>(threadIdx.x) / 128 - 1));
  }
#endif
}

}  // namespace

template <int kDim>
void LaunchGradients(const Context& ctx, const BackwardArgs& args) {
  constexpr int kBytes = BackwardSize<kDim>::kBytes;
  ELA_CUDA_CHECK(cudaFuncSetAttribute(GradientsOnHopper<kDim>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto blocks = static_cast<unsigned>(NumMultiprocessors(ctx));
  GradientsOnHopper<kDim><<<blocks, kThreads, kBytes, StreamOf(ctx)>>>(args);
  CheckLaunch("GradientsOnHopper");
}
template void LaunchGradients<64>(const Context&, const BackwardArgs&);
template void LaunchGradients<128>(const Context&, const BackwardArgs&);

}  // namespace ela::kernels::cuda::softmax
