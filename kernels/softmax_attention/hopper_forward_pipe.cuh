// What of the forward kernel moves data: its shared memory, and the warp that loads tiles.
#pragma once

#include "kernels/device_code.cuh"
#include "kernels/softmax_attention/hopper_tile.cuh"

namespace ela::kernels::cuda::softmax {

inline constexpr int kGroupRows = 64;  // queries of a warpgroup

struct ForwardArgs {
  CUtensorMap q, k, v;
  void* y;
  float* lse;  // [Tq, H]
  int64_t y_stride;
  Tiles queries, keys;  // a tile of queries: of a warpgroup
  const Span* spans;
  int* next;  // item: the queries of a block and a head
  int heads, heads_together;
  float scale_log2;
  bool causal, y_is_float;
};

/// Sizes and places in shared memory, in bytes.
template <int kDim>
struct ForwardSize {
  static constexpr int kGroups = kDim == 64 ? 3 : 2;
  static constexpr int kQueryRows = kGroupRows * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kLoaderRegisters = kDim == 64 ? 32 : 40;
  static constexpr int kRegisters = kDim == 64 ? 160 : 232;
  static constexpr int kLaunched = kDim == 64 ? 128 : 168;
  static constexpr int kStages = kDim == 64 ? 4 : 2;
  static constexpr int kTile = kKeyRows * kDim * 2;
  static constexpr int kQueryTile = kQueryRows * kDim * 2;
  static constexpr int kKeys = 2 * kQueryTile;  // after queries of two items
  static constexpr int kValues = kKeys + kStages * kTile;
  static constexpr int kQueryPlaces = kValues + kStages * kTile;
  static constexpr int kKeyPlaces = kQueryPlaces + 2 * kQueryRows * 8;
  static constexpr int kInfo = kKeyPlaces + kStages * kKeyRows * 8;
  static constexpr int kBytes = kInfo + 512;
  static_assert(kBytes <= 227 * 1024);
};

#ifdef ELA_HOPPER_CODE

using hopper::Arrive;
using hopper::SharedAddress;
using hopper::WaitBarrier;

/// What the loader tells the others about an item. Its tiles of keys are those that some group
/// sees, late ones first.
struct Item {
  int tile, head;
  int count;             // of tiles of keys; 0: no more items
  int begin[3], own[3];  // of a group: tiles before those it sees, tiles it sees
};

template <int kDim>
struct ForwardMemory : ForwardSize<kDim> {
  using Size = ForwardSize<kDim>;
  unsigned char* base;

  __device__ explicit ForwardMemory(unsigned char* memory) : base(memory) {
    ELA_DEVICE_CHECK(SharedAddress(memory) % 1024 == 0, ": shared memory is not aligned\n");
  }
  __device__ unsigned char* Queries(int item) const { return base + item % 2 * Size::kQueryTile; }
  __device__ unsigned char* Keys(int i) const {
    return base + Size::kKeys + i % Size::kStages * Size::kTile;
  }
  __device__ unsigned char* Values(int i) const {
    return base + Size::kValues + i % Size::kStages * Size::kTile;
  }
  __device__ Place* QueryPlaces(int item) const {
    return reinterpret_cast<Place*>(base + Size::kQueryPlaces) + item % 2 * Size::kQueryRows;
  }
  __device__ Place* KeyPlaces(int i) const {
    return reinterpret_cast<Place*>(base + Size::kKeyPlaces) + i % Size::kStages * kKeyRows;
  }
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kInfo) + i;
  }
  __device__ uint64_t* QueriesFull(int item) const { return Barrier(item % 2); }
  __device__ uint64_t* QueriesFree(int item) const { return Barrier(2 + item % 2); }
  __device__ uint64_t* KeysFull(int i) const { return Barrier(4 + i % Size::kStages); }
  __device__ uint64_t* KeysFree(int i) const { return Barrier(8 + i % Size::kStages); }
  __device__ uint64_t* ValuesFull(int i) const { return Barrier(12 + i % Size::kStages); }
  __device__ uint64_t* ValuesFree(int i) const { return Barrier(16 + i % Size::kStages); }
  /// Of the stage: bit g is set if some pair of group g doesn't meet.
  __device__ unsigned* MaskedOf(int i) const {
    return reinterpret_cast<unsigned*>(Barrier(20)) + i % Size::kStages;
  }
  __device__ Item* ItemOf(int item) const {
    return reinterpret_cast<Item*>(Barrier(24)) + item % 2;
  }
  /// Parity of the i-th use of a stage; of an item's place.
  __device__ static int Turn(int i) { return i / Size::kStages % 2; }
  __device__ static int ItemTurn(int item) { return item / 2 % 2; }

  __device__ void Start() const {
    constexpr int kWarps = 4 * Size::kGroups;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) {
        hopper::InitBarrier(QueriesFull(i), 2);
        hopper::InitBarrier(QueriesFree(i), kWarps);
      }
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

/// A warp that loads item by item; lane g looks at what group g sees, lane 0 loads.
template <int kDim>
class Loader {
 public:
  __device__ Loader(const ForwardArgs& args, const ForwardMemory<kDim>& memory)
      : p(args), mem(memory), lane(static_cast<int>(threadIdx.x)) {}

  __device__ void Run() {
    const int tiles = p.queries.count / Size::kGroups;
    for (;;) {
      const int id = Uniform(lane == 0 ? atomicAdd(p.next, 1) : 0);
      if (id >= tiles * p.heads) break;
      const TileOfHead next = NthTile(id, tiles, p.heads, p.heads_together);
      LoadItem(tiles - 1 - next.tile, next.head);
    }
    if (lane > 0) return;
    WaitBarrier(mem.QueriesFree(item), mem.ItemTurn(item) ^ 1);
    mem.ItemOf(item)->count = 0;
    Arrive(mem.QueriesFull(item));
    Arrive(mem.QueriesFull(item));
  }

 private:
  using Size = ForwardSize<kDim>;

  __device__ void LoadItem(int tile, int head) {
    const bool is_group = lane < Size::kGroups;
    const Span own = is_group ? p.spans[tile * Size::kGroups + lane] : Span{0, 0, 0};
    const bool some = own.count > 0;
    const int begin = __reduce_min_sync(kAllLanes, some ? own.begin : INT32_MAX);
    const int end = __reduce_max_sync(kAllLanes, some ? own.end : 0);
    if (begin >= end) return;
    WaitBarrier(mem.QueriesFree(item), mem.ItemTurn(item) ^ 1);
    Item* it = mem.ItemOf(item);
    if (is_group) {
      it->begin[lane] = some ? end - own.end : end - begin;
      it->own[lane] = own.count;
    }
    __syncwarp();
    if (lane == 0) {
      it->tile = tile;
      it->head = head;
      it->count = end - begin;
      LoadTile<Size::kQueryRows, kDim>(&p.q, mem.QueriesFull(item), mem.Queries(item), head, tile);
      LoadPlaces(p.queries.places, mem.QueriesFull(item), mem.QueryPlaces(item), tile,
                 Size::kQueryRows);
    }
    ++item;
    unsigned flags = 0;
    for (int i = 0; i < end - begin; ++i, ++step) {
      const int key = end - 1 - i;
      if (i % kWarp == 0) flags = MaskedGroups(tile, max(key - lane, begin));
      const unsigned masked = __shfl_sync(kAllLanes, flags, i % kWarp);
      if (lane > 0) continue;
      LoadKeys(head, key, masked);
      LoadValues(head, key);
    }
  }
  /// A lane's own tile of keys: a warp looks at as many at once, so that loads seldom wait for it.
  __device__ unsigned MaskedGroups(int tile, int key) const {
    unsigned masked = 0;
#pragma unroll
    for (int g = 0; g < Size::kGroups; ++g) {
      const bool all = AllMeet(p.queries, tile * Size::kGroups + g, p.keys, key, p.causal);
      masked |= all ? 0u : 1u << g;
    }
    return masked;
  }
  __device__ void LoadKeys(int head, int key, unsigned flags) {
    WaitBarrier(mem.KeysFree(step), mem.Turn(step) ^ 1);
    *mem.MaskedOf(step) = flags;
    LoadPlaces(p.keys.places, mem.KeysFull(step), mem.KeyPlaces(step), key, kKeyRows);
    LoadTile<kKeyRows, kDim>(&p.k, mem.KeysFull(step), mem.Keys(step), head, key);
  }
  __device__ void LoadValues(int head, int key) {
    WaitBarrier(mem.ValuesFree(step), mem.Turn(step) ^ 1);
    LoadTile<kKeyRows, kDim>(&p.v, mem.ValuesFull(step), mem.Values(step), head, key);
  }

  const ForwardArgs& p;
  const ForwardMemory<kDim>& mem;
  const int lane;
  int step = 0, item = 0;
};

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::softmax
