// Blocks of specialised warpgroups, which walk an item as a pipeline of steps. A step is a chunk
// or, where keys grow too much within it, a window of it.
//
//   weigher   turns keys into weights at the step's gauge, publishes the step
//   scorer    what of the output needs no state: products within the step. At head dim 64 the
//             weigher is the scorer too
//   carriers  kPanels warpgroups that carry the state in registers: read it, then add the step
//
// A warp of the scorer or, where it has no time for that, of the first carrier also loads tiles.
// The weigher is up to two steps ahead of the carriers, which let go of a step's weights as early
// as they can; so copies, exponentials and products of different steps overlap.
#pragma once

#include "kernels/ela/cuda/hopper_block.cuh"

namespace ela::kernels::cuda::hopper {

/// Where things are in a block's shared memory, in bytes.
template <int kPanels, int kStreams, int kScores>
struct PipeSize {
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kSlots = 2;  // chunks whose tiles are there
  static constexpr int kChunkSlots = 4, kNormSlots = 4;
  static constexpr int kScoreSlots = kScores == 1 ? 2 : 1;  // steps whose scores are there
  static constexpr bool kMerged = kPanels == 1;             // the weigher is the scorer
  static constexpr bool kScorerLoads = !kMerged;            // else a carrier
  static constexpr int kThreads = 128 * ((kMerged ? 1 : 2) + kPanels);
  static constexpr int kStreamTiles = kSlots * kTile;
  static constexpr int kWeights = kStreamTiles + kSlots * kStreams * kTile;  // of 2 steps
  static constexpr int kState = kWeights + 2 * kTile;
  static constexpr int kScoreTiles = kState + kPanels * kTile;
  static constexpr int kGauges = kScoreTiles + kScoreSlots * kScores * kPanelBytes;
  static constexpr int kRows = kGauges + (2 * 2 + kNormSlots) * 64 * kPanels * 4;
  static constexpr int kRowArrays = 4;                                       // of 64, of a step
  static constexpr int kChunkRows = kRows + 2 * kRowArrays * kTileRows * 4;  // 2 arrays of a chunk
  static constexpr int kChunks = kChunkRows + kChunkSlots * 2 * kTileRows * 4;
  static constexpr int kWalk = kChunks + kChunkSlots * 16;
  static constexpr int kSteps = kWalk + 64;
  static constexpr int kRaised = kSteps + 2 * 64;  // by warps of the weigher
  static constexpr int kOwn = kRaised + 2 * 16;    // features before and after a step
  static constexpr int kBarriers = kOwn + 2 * 64 * kPanels * 8;
  static constexpr int kBytes = kBarriers + 128 + 1024;          // to align
  static_assert((3 - kPanels) * (kBytes + 1024) <= 228 * 1024);  // blocks of a multiprocessor
};

#ifdef ELA_HOPPER_CODE

/// A chunk of a walk; row < 0: none, the walk is over.
struct Chunk {
  int row = -1;
  int count = 0, span = 0;
  bool first = false;  // of its span, or of the item
};
static_assert(sizeof(Chunk) == 16 && sizeof(Walk) <= 64);

/// What the weigher tells the others about a step.
struct Step {
  int64_t row;  // first of the chunk
  Window window;
  int span;
  bool stop;   // no step: the walk is over
  bool first;  // the first step of its span, or of the item
  bool fresh;  // the first step of its chunk
  bool last;   // the last step of its chunk
};
static_assert(sizeof(Step) <= 64);

template <int kPanels, int kStreams, int kScores>
struct Pipe : PipeSize<kPanels, kStreams, kScores> {
  using Size = PipeSize<kPanels, kStreams, kScores>;
  using Size::kTile, Size::kSlots, Size::kScoreSlots, Size::kMerged;

  unsigned char* base;
  __device__ explicit Pipe(unsigned char* memory) {
    base = memory + ((1024 - SharedAddress(memory) % 1024) % 1024);
  }
  __device__ unsigned char* Keys(int chunk) const { return base + chunk % kSlots * kTile; }
  __device__ unsigned char* Stream(int chunk, int i) const {
    return base + Size::kStreamTiles + (chunk % kSlots * kStreams + i) * kTile;
  }
  __device__ unsigned char* Weights(int step) const {
    return base + Size::kWeights + step % 2 * kTile;
  }
  __device__ uint32_t StateCopy(int warpgroup) const {
    return SharedAddress(base + Size::kState + warpgroup * kTile);
  }
  __device__ uint32_t Scores(int step) const {
    return SharedAddress(base + Size::kScoreTiles + step % kScoreSlots * kScores * kPanelBytes);
  }
  __device__ Gauges GaugesOf(int step) const {
    float* at = reinterpret_cast<float*>(base + Size::kGauges);
    return {at + step % 2 * 64 * kPanels, at + (2 + step % 2) * 64 * kPanels,
            at + (4 + step % Size::kNormSlots) * 64 * kPanels};
  }
  /// Gauges and normalisers of the state before a step, of the weigher alone.
  __device__ OwnFeature* Own(int step) const {
    return reinterpret_cast<OwnFeature*>(base + Size::kOwn) + step % 2 * 64 * kPanels;
  }
  /// Of a step, by the weigher's warps: whether a gauge changed.
  __device__ int* Raised(int step) const {
    return reinterpret_cast<int*>(base + Size::kRaised) + step % 2 * 4;
  }
  __device__ bool AnyRaised(int step) const {
    const int4 raised = *reinterpret_cast<const int4*>(Raised(step));
    return (raised.x | raised.y | raised.z | raised.w) != 0;
  }
  __device__ float* Rows(int step) const {
    return reinterpret_cast<float*>(base + Size::kRows) + step % 2 * Size::kRowArrays * kTileRows;
  }
  __device__ Step* StepOf(int step) const {
    return reinterpret_cast<Step*>(base + Size::kSteps + step % 2 * 64);
  }

  __device__ Chunk* ChunkOf(int chunk) const {
    return reinterpret_cast<Chunk*>(base + Size::kChunks) + chunk % Size::kChunkSlots;
  }
  /// Of gradient scans, a chunk's lse (0) and -delta (1).
  __device__ float* RowsOf(int chunk, int i) const {
    return reinterpret_cast<float*>(base + Size::kChunkRows) +
           (chunk % Size::kChunkSlots * 2 + i) * kTileRows;
  }
  __device__ Walk* WalkOf() const { return reinterpret_cast<Walk*>(base + Size::kWalk); }

  // Barriers: tiles loaded; a step published, scored, its weights read by the carriers, and all of
  // it done with. Waits are for the chunk's or step's own turn of the slot.
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + i;
  }
  __device__ uint64_t* KeysLoaded(int chunk) const { return Barrier(chunk % kSlots); }
  __device__ uint64_t* StreamsLoaded(int chunk) const { return Barrier(2 + chunk % kSlots); }
  __device__ uint64_t* Published(int step) const { return Barrier(5 + step % 2); }
  __device__ uint64_t* Scored(int step) const { return Barrier(7 + step % 2); }
  __device__ uint64_t* Done(int step) const { return Barrier(9 + step % 2); }
  __device__ uint64_t* Used(int step) const { return Barrier(11 + step % 2); }
  __device__ int* SharedInt() const { return reinterpret_cast<int*>(Barrier(13)); }

  __device__ void WaitKeys(int chunk) const { WaitBarrier(KeysLoaded(chunk), chunk / kSlots % 2); }
  __device__ void WaitStreams(int chunk) const {
    WaitBarrier(StreamsLoaded(chunk), chunk / kSlots % 2);
  }
  __device__ void WaitPublished(int step) const { WaitBarrier(Published(step), step / 2 % 2); }
  __device__ void WaitScored(int step) const { WaitBarrier(Scored(step), step / 2 % 2); }
  __device__ void WaitDone(int step) const { WaitBarrier(Done(step), step / 2 % 2); }
  /// Where a chunk takes several steps, a scorer that writes weights over a tile waits for the step
  /// before: its carriers read every row of the tile, and other lanes wrote what this one loads.
  __device__ void WaitTile(int step, const Step& now) const {
    if (!now.fresh) WaitDone(step - 1);
  }
  /// Until nobody reads the weights of the step two before, so that this one can be weighed.
  __device__ void WaitRoom(int step) const {
    WaitBarrier(Used(step), (step / 2 + 1) % 2);
    if (!kMerged) WaitBarrier(Scored(step), (step / 2 + 1) % 2);
  }

  /// key_arrivals: see Loader.
  __device__ void Start(int key_arrivals) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlots; ++i) {
        InitBarrier(KeysLoaded(i), key_arrivals);
        InitBarrier(StreamsLoaded(i), 1);
      }
      for (int i = 0; i < 2; ++i) {  // arrivals are warps'
        InitBarrier(Published(i), 4);
        InitBarrier(Scored(i), 4);
        InitBarrier(Used(i), 4 * kPanels);
        InitBarrier(Done(i), 4 * kPanels);
      }
      FenceProxy();
    }
    __syncthreads();
  }

  __device__ void LoadTile(const CUtensorMap* map, uint64_t* loaded, unsigned char* to, int head,
                           int64_t row) const {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      LoadPanel(map, loaded, to + panel * kPanelBytes, 64 * (kPanels * head + panel),
                static_cast<int>(row));
    }
  }
  /// By one thread, as LoadStreams is.
  __device__ void LoadKeys(int chunk, const CUtensorMap* map, int head, int64_t row) const {
    ExpectBytes(KeysLoaded(chunk), kTile);
    LoadTile(map, KeysLoaded(chunk), Keys(chunk), head, row);
  }
  __device__ void LoadStreams(int chunk, const CUtensorMap* const (&maps)[kStreams], int head,
                              int64_t row) const {
    ExpectBytes(StreamsLoaded(chunk), kStreams * kTile);
#pragma unroll
    for (int i = 0; i < kStreams; ++i) {
      LoadTile(maps[i], StreamsLoaded(chunk), Stream(chunk, i), head, row);
    }
  }
};

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
