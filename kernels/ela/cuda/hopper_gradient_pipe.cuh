// Shared memory of the gradient scans (hopper_query.cu, hopper_key.cu), and what loads their tiles.
#pragma once

#include "kernels/ela/cuda/hopper_features.cuh"
#include "kernels/ela/cuda/hopper_launch.h"

namespace ela::kernels::cuda::hopper {

/// Where things are in a block's shared memory, in bytes: keys (of the scan) of 2 chunks, three
/// other tiles of kSlots chunks, masked products of 2 chunks, and kOwn bytes of the scan's own.
/// A block has kPanels warpgroups that keep the state and one more.
template <int kPanels, int kSlots, int kOwn>
struct GradientSize {
  static constexpr int kThreads = 128 * (kPanels + 1);
  static constexpr int kLaunched = kPanels == 1 ? 128 : 168;  // registers a thread
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kStreamTiles = 2 * kTile;
  static constexpr int kScores = kStreamTiles + kSlots * 3 * kTile;
  static constexpr int kOwnBytes = kScores + 2 * kPanelBytes;
  static constexpr int kRowSlots = 4, kChunkSlots = 8;
  static constexpr int kRows = kOwnBytes + kOwn;  // two arrays of a chunk
  static constexpr int kChunks = kRows + kRowSlots * 2 * kTileRows * 4;
  static constexpr int kWalk = kChunks + kChunkSlots * 16;
  static constexpr int kBarriers = kWalk + 64;
  static constexpr int kBytes = kBarriers + 128 + 1024;          // to align
  static_assert((3 - kPanels) * (kBytes + 1024) <= 228 * 1024);  // blocks of a multiprocessor
};

#ifdef ELA_HOPPER_CODE

template <int kPanels, int kSlots, int kOwn>
struct GradientMemory : GradientSize<kPanels, kSlots, kOwn> {
  using Size = GradientSize<kPanels, kSlots, kOwn>;
  using Size::kTile;

  unsigned char* base;
  __device__ explicit GradientMemory(unsigned char* memory) {
    base = memory + ((1024 - SharedAddress(memory) % 1024) % 1024);
  }
  __device__ unsigned char* Keys(int chunk) const { return base + chunk % 2 * kTile; }
  __device__ unsigned char* Stream(int chunk, int i) const {
    return base + Size::kStreamTiles + (chunk % kSlots * 3 + i) * kTile;
  }
  __device__ uint32_t Scores(int chunk) const {
    return SharedAddress(base + Size::kScores + chunk % 2 * kPanelBytes);
  }
  __device__ unsigned char* Own() const { return base + Size::kOwnBytes; }
  /// A chunk's lse (0) and -delta (1).
  __device__ float* Rows(int chunk, int i) const {
    return reinterpret_cast<float*>(base + Size::kRows) +
           (chunk % Size::kRowSlots * 2 + i) * kTileRows;
  }
  __device__ Chunk* ChunkOf(int chunk) const {
    return reinterpret_cast<Chunk*>(base + Size::kChunks) + chunk % Size::kChunkSlots;
  }
  __device__ Walk* WalkOf() const { return reinterpret_cast<Walk*>(base + Size::kWalk); }

  // Barriers: tiles loaded, the masked product there, all of a chunk but its keys used. Waits are
  // for the chunk's own turn of the slot. 6 more are the scan's own.
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + i;
  }
  __device__ uint64_t* KeysLoaded(int chunk) const { return Barrier(chunk % 2); }
  __device__ uint64_t* StreamsLoaded(int chunk) const { return Barrier(2 + chunk % kSlots); }
  __device__ uint64_t* StreamsUsed(int chunk) const { return Barrier(5 + chunk % kSlots); }
  __device__ uint64_t* Scored(int chunk) const { return Barrier(8 + chunk % 2); }
  __device__ uint64_t* OwnBarrier(int i) const { return Barrier(10 + i); }

  __device__ void WaitKeys(int chunk) const { WaitBarrier(KeysLoaded(chunk), chunk / 2 % 2); }
  __device__ void WaitStreams(int chunk) const {
    WaitBarrier(StreamsLoaded(chunk), chunk / kSlots % 2);
  }
  __device__ void WaitStreamsUsed(int chunk) const {
    WaitBarrier(StreamsUsed(chunk), chunk / kSlots % 2);
  }
  __device__ void WaitScored(int chunk) const { WaitBarrier(Scored(chunk), chunk / 2 % 2); }

  /// By one thread, which then lets every other see it; users: warps that use streams.
  __device__ void InitBarriers(int users) const {
    for (int i = 0; i < 2; ++i) {
      InitBarrier(KeysLoaded(i), 33);
      InitBarrier(Scored(i), 4);
    }
    for (int i = 0; i < kSlots; ++i) {
      InitBarrier(StreamsLoaded(i), 1);
      InitBarrier(StreamsUsed(i), users);
    }
  }
};

/// What loads tiles, by a warp, of the chunks of an item; and the chunks' lse and -delta (unless it
/// is null), which the warp's lanes copy.
template <bool kReverse, class Memory>
struct GradientLoader {
  const Memory& mem;
  const WalkArgs& args;
  int head;
  const CUtensorMap* keys;
  const CUtensorMap* streams[3];
  const float* lse;  // [T, H]
  const float* minus_delta;

  __device__ void Start(const DeviceItem& item) const {
    if (Lane() == 0) *mem.WalkOf() = Walk(args.plan, item, kReverse);
  }
  /// Where the rows of the next chunk are, which is `chunk`.
  __device__ void Find(int chunk) const {
    if (Lane() == 0) {
      Chunk next;
      Walk walk = *mem.WalkOf();
      if (walk.template Next<kReverse>()) next = {walk.row, walk.count, walk.span, walk.first};
      *mem.WalkOf() = walk;
      *mem.ChunkOf(chunk) = next;
    }
    __syncwarp();
  }
  __device__ void LoadKeys(int chunk) const {
    const Chunk at = *mem.ChunkOf(chunk);
    if (Lane() == 0) {
      if (at.row >= 0) {
        ExpectBytes(mem.KeysLoaded(chunk), Memory::kTile);
        Load(keys, mem.KeysLoaded(chunk), mem.Keys(chunk), at.row);
      } else {
        Arrive(mem.KeysLoaded(chunk));
      }
    }
    for (int row = Lane(); at.row >= 0 && row < kTileRows; row += 32) {
      const bool live = row < at.count;
      const int64_t i = live ? int64_t{at.row + row} * args.heads + head : 0;
      CopyFloat(mem.Rows(chunk, 0) + row, lse + i, live);
      if (minus_delta != nullptr) CopyFloat(mem.Rows(chunk, 1) + row, minus_delta + i, live);
    }
    ArriveOnCopies(mem.KeysLoaded(chunk));
  }
  __device__ void LoadStreams(int chunk) const {
    const int row = mem.ChunkOf(chunk)->row;
    if (Lane() != 0 || row < 0) return;
    ExpectBytes(mem.StreamsLoaded(chunk), 3 * Memory::kTile);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      Load(streams[i], mem.StreamsLoaded(chunk), mem.Stream(chunk, i), row);
    }
  }

 private:
  static __device__ int Lane() { return static_cast<int>(threadIdx.x % 32u); }
  __device__ void Load(const CUtensorMap* map, uint64_t* loaded, unsigned char* to, int row) const {
    constexpr int kPanels = Memory::kTile / kPanelBytes;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      LoadPanel(map, loaded, to + panel * kPanelBytes, 64 * (kPanels * head + panel), row);
    }
  }
};

/// The masked product of a chunk: score[i][j] = a_i . b_j of a tile's rows, started only.
template <int kPanels>
__device__ void StartScores(uint32_t a, uint32_t b, float (&score)[32]) {
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    WgmmaShared<false, false>(score, KMajor(a, k), KMajor(b, k), k > 0);
  }
  WgmmaCommit();
}

/// A masked product into its place, for those who wait for the chunk's.
template <class Memory, bool kUpper>
__device__ void PublishScores(const Memory& mem, int chunk, const Place& at,
                              const TriangleMask<kUpper>& mask, const float (&score)[32]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4];
    PackFragment(score, k, a);
    mask(k, a);
    StoreFragment(mem.Scores(chunk), at.warp, k, a);
  }
  FenceProxy();
  ArriveWarp(mem.Scored(chunk));
}

/// Rows of S, rounded to bf16, as A fragments.
template <int kPanels>
__device__ void PackState(const Features<kPanels>& own, uint32_t (&a)[4 * kPanels][4]) {
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) PackFragment(own.s[k / 4], k % 4, a[k]);
}

/// d [64 features][64 rows] = state x^T + weights s^T, after WgmmaFence(); x: a tile [rows][columns
/// of S], s: a panel [rows][rows].
template <int kPanels>
__device__ void MultiplyFeatures(const uint32_t (&state)[4 * kPanels][4], const Keys& keys,
                                 uint32_t x, uint32_t s, float (&d)[32]) {
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) WgmmaRegisters<false>(d, state[k], KMajor(x, k), k > 0);
#pragma unroll
  for (int k = 0; k < 4; ++k) WgmmaRegisters<false>(d, keys.a[k], KMajor(s, k), true);
}

/// The window's rows of an accumulator [64 features][64 rows], rounded to bf16, to 16 columns a
/// warp of global rows.
__device__ inline void WriteFeatures(const Place& at, const Window& window, __nv_bfloat16* to,
                                     int64_t stride, const float (&d)[32]) {
  const bool odd = at.t % 2 != 0;
  const auto row = static_cast<int>(threadIdx.x % 32u / 4u);
  __nv_bfloat16* const first = to + row * stride + 16 * at.warp + 8 * (at.t % 2) + 4 * (at.t / 2);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint32_t low = Transpose(Pack(d[4 * j], d[4 * j + 1]));
    const uint32_t high = Transpose(Pack(d[4 * j + 2], d[4 * j + 3]));
    // Lanes exchange pairs so that a quad writes 32 bytes at once.
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
    const uint2 both = odd ? make_uint2(got, high) : make_uint2(low, got);
    if (window.Holds(8 * j + row)) *reinterpret_cast<uint2*>(first + 8 * j * stride) = both;
  }
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
