// What of the backward kernel moves data: its shared memory, the thread that loads tiles, and the
// two that add parts of dq.
#pragma once

#include "kernels/softmax_attention/hopper_backward.cuh"
#include "kernels/softmax_attention/hopper_tile.cuh"

namespace ela::kernels::cuda::softmax {

inline constexpr int kGroups = 2;  // warpgroups that compute

#ifdef ELA_HOPPER_CODE

using hopper::Arrive;
using hopper::SharedAddress;
using hopper::WaitBarrier;

/// What the loader tells the others about an item; count of steps, 0: no more items.
struct GradientItem {
  int tile, head, count;
};

template <int kDim>
struct BackwardMemory : BackwardSize<kDim> {
  using Size = BackwardSize<kDim>;
  unsigned char* base;

  __device__ explicit BackwardMemory(unsigned char* memory) : base(memory) {
    ELA_DEVICE_CHECK(SharedAddress(memory) % 1024 == 0, ": shared memory is not aligned\n");
  }
  __device__ unsigned char* Keys() const { return base; }
  __device__ unsigned char* Values() const { return base + Size::kKeyTile; }
  __device__ unsigned char* Queries(int i) const {
    return base + Size::kQueries + i % 2 * Size::kQueryTile;
  }
  __device__ unsigned char* Dy(int i) const { return base + Size::kDy + i % 2 * Size::kQueryTile; }
  __device__ unsigned char* Ds(int i) const { return base + Size::kDs + i % 2 * Size::kDsTile; }
  __device__ unsigned char* Sums(int i) const {
    return base + Size::kSums + i % Size::kSumStages * Size::kSumBytes;
  }
  __device__ float2* Statistics(int i) const {
    return reinterpret_cast<float2*>(base + Size::kStatistics) + i % 2 * Size::kQueryRows;
  }
  __device__ Place* Places(int i) const {
    return reinterpret_cast<Place*>(base + Size::kPlaces) + i % 2 * Size::kQueryRows;
  }
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kInfo) + i;
  }
  __device__ uint64_t* KeysFull() const { return Barrier(0); }
  __device__ uint64_t* KeysFree() const { return Barrier(1); }
  __device__ uint64_t* QueriesFull(int i) const { return Barrier(2 + i % 2); }
  __device__ uint64_t* QueriesFree(int i) const { return Barrier(4 + i % 2); }
  __device__ uint64_t* DyFull(int i) const { return Barrier(6 + i % 2); }
  __device__ uint64_t* DyFree(int i) const { return Barrier(8 + i % 2); }
  __device__ uint64_t* SumsFull(int i) const { return Barrier(10 + i % 2); }
  __device__ uint64_t* SumsFree(int i) const { return Barrier(12 + i % Size::kSumStages); }
  /// Parity of the use before the i-th of its stage.
  __device__ static int LastSumsTurn(int i) { return (i / Size::kSumStages + 1) % 2; }
  __device__ GradientItem* ItemOf() const { return reinterpret_cast<GradientItem*>(Barrier(15)); }
  /// Whether all pairs of the stage's tiles meet.
  __device__ int* AllMeetOf(int i) const { return reinterpret_cast<int*>(Barrier(17)) + i % 2; }
  __device__ static int Turn(int i) { return i / 2 % 2; }

  __device__ void Start() const {
    constexpr int kWarps = 4 * kGroups;
    if (threadIdx.x == 0) {
      hopper::InitBarrier(KeysFull(), 2);
      hopper::InitBarrier(KeysFree(), kWarps + 2);
      for (int i = 0; i < Size::kStages; ++i) {
        hopper::InitBarrier(QueriesFull(i), 3);
        hopper::InitBarrier(QueriesFree(i), kWarps);
        hopper::InitBarrier(DyFull(i), 1);
        hopper::InitBarrier(DyFree(i), kWarps);
        hopper::InitBarrier(SumsFull(i), kWarps);
        hopper::InitBarrier(Barrier(12 + i), 1);  // SumsFree, if there are two
      }
      hopper::FenceProxy();
    }
    __syncthreads();
  }
};

/// By one thread.
template <int kDim>
__device__ void LoadItems(const BackwardArgs& p, const BackwardMemory<kDim>& mem) {
  using Size = BackwardSize<kDim>;
  int step = 0, item = 0;
  for (;;) {
    const int id = atomicAdd(p.next, 1);
    if (id >= p.keys.count * p.heads) break;
    const auto [tile, head] = NthTile(id, p.keys.count, p.heads, p.heads_together);
    const Span span = p.key_spans[tile];
    if (span.count == 0) continue;
    WaitBarrier(mem.KeysFree(), (item + 1) % 2);
    *mem.ItemOf() = {tile, head, span.count};
    LoadTile<kKeyRows, kDim>(&p.k, mem.KeysFull(), mem.Keys(), head, tile);
    LoadTile<kKeyRows, kDim>(&p.v, mem.KeysFull(), mem.Values(), head, tile);
    ++item;
    for (int query = span.end - 1; query >= span.begin; --query) {
      if (!p.spans[query].Holds(tile)) continue;
      const bool all = AllMeet(p.queries, query, p.keys, tile, p.causal);
      WaitBarrier(mem.QueriesFree(step), mem.Turn(step) ^ 1);
      *mem.AllMeetOf(step) = all;
      LoadPlaces(p.queries.places, mem.QueriesFull(step), mem.Places(step), query,
                 Size::kQueryRows);
      hopper::ExpectBytes(mem.QueriesFull(step), Size::kQueryRows * 8);
      hopper::LoadBulk(mem.Statistics(step),
                       p.statistics + (int64_t{head} * p.queries.count + query) * Size::kQueryRows,
                       Size::kQueryRows * 8, mem.QueriesFull(step));
      LoadTile<Size::kQueryRows, kDim>(&p.q, mem.QueriesFull(step), mem.Queries(step), head, query);
      WaitBarrier(mem.DyFree(step), mem.Turn(step) ^ 1);
      LoadTile<Size::kQueryRows, kDim>(&p.dy, mem.DyFull(step), mem.Dy(step), head, query);
      ++step;
    }
  }
  WaitBarrier(mem.KeysFree(), (item + 1) % 2);
  mem.ItemOf()->count = 0;
  Arrive(mem.KeysFull());
  Arrive(mem.KeysFull());
}

__device__ inline void WaitTurn(const int* turn, int rank) {
  int now;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  } while (now != rank);
}
__device__ inline void GiveTurn(int* turn, int rank) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(turn), "r"(rank) : "memory");
}
__device__ inline void AddBulk(void* to, const void* from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(SharedAddress(from)), "r"(bytes)
               : "memory");
}

/// Adds the part of dq of every other step when its turn comes, so that one part can be on its way
/// while the next is; by one thread.
template <int kDim>
__device__ void AddItems(const BackwardArgs& p, const BackwardMemory<kDim>& mem, int odd) {
  constexpr int kBytes = BackwardSize<kDim>::kSumBytes;
  int step = 0;
  for (int item = 0;; ++item) {
    WaitBarrier(mem.KeysFull(), item % 2);
    const GradientItem now = *mem.ItemOf();
    Arrive(mem.KeysFree());
    if (now.count == 0) return;
    int query = p.key_spans[now.tile].end;
    for (int i = 0; i < now.count; ++i, ++step) {
      Span span;
      do {
        span = p.spans[--query];
      } while (!span.Holds(now.tile));
      if (step % 2 != odd) continue;
      const int64_t at = int64_t{query} * p.heads + now.head;
      float* to = p.sums + at * (kBytes / 4);
      const int rank = now.tile - span.begin;
      WaitBarrier(mem.SumsFull(step), mem.Turn(step));
      WaitTurn(p.turns + at, rank);
      if (rank == 0) {
        hopper::StoreBulk(to, mem.Sums(step), kBytes);
      } else {
        AddBulk(to, mem.Sums(step), kBytes);
      }
      hopper::CommitStores();
      hopper::WaitStoresRead<0>();
      Arrive(mem.SumsFree(step));
      hopper::WaitStores();
      GiveTurn(p.turns + at, rank + 1);
    }
  }
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::softmax
