// Blocks of specialised warpgroups, which walk an item as a pipeline of steps. A step is a chunk
// or, where keys grow too much within it, a window of it.
//
//   weigher   loads tiles, turns keys into weights at the step's gauge, publishes the step
//   scorer    (not every scan) what of the output needs no state: products within the step. At head
//             dim 64 the weigher is the scorer too
//   carriers  kPanels warpgroups that carry the state in registers: read it, then add the step
//
// The weigher is up to two steps ahead of the carriers, and tiles are loaded a chunk before anyone
// needs them; so copies, exponentials and products of different steps overlap.
#pragma once

#include "kernels/ela/cuda/hopper_block.cuh"

namespace ela::kernels::cuda::hopper {

/// Where things are in a block's shared memory, in bytes.
template <int kPanels, int kStreams, int kSlots, int kScores>
struct PipeSize {
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kKeySlots = 2;  // chunks whose keys are there; kSlots for the other tiles
  static constexpr int kScoreSlots = kSlots == 3 ? 2 : 1;  // steps whose scores are there
  static constexpr bool kMerged = kPanels == 1;            // the weigher is the scorer
  static constexpr int kThreads = 128 * ((kScores == 0 || kMerged ? 1 : 2) + kPanels);
  static constexpr int kStreamTiles = kKeySlots * kTile;
  static constexpr int kWeights = kStreamTiles + kSlots * kStreams * kTile;  // of 2 steps
  static constexpr int kState = kWeights + 2 * kTile;
  static constexpr int kScoreTiles = kState + (kScores > 0 ? kPanels * kTile : 0);
  static constexpr int kGauges = kScoreTiles + kScoreSlots * kScores * kPanelBytes;
  static constexpr int kRows = kGauges + 2 * 3 * 64 * kPanels * 4;  // 2 arrays of 64 a step
  static constexpr int kSteps = kRows + 2 * 2 * kTileRows * 4;
  static constexpr int kBarriers = kSteps + 2 * 64;
  static constexpr int kBytes = kBarriers + 128 + 1024;  // to align
  static_assert(kBytes <= 227 * 1024);
};

#ifdef ELA_HOPPER_CODE

/// What the weigher tells the others about a step.
struct Step {
  int64_t row;   // first of the chunk
  int64_t next;  // the same of the chunk after it, or -1
  Window window;
  int span;
  bool stop;   // no step: the walk is over
  bool first;  // the first step of its span, or of the item
  bool fresh;  // the first step of its chunk
};
static_assert(sizeof(Step) <= 64);

template <int kPanels, int kStreams, int kSlots, int kScores>
struct Pipe : PipeSize<kPanels, kStreams, kSlots, kScores> {
  using Size = PipeSize<kPanels, kStreams, kSlots, kScores>;
  using Size::kTile, Size::kKeySlots, Size::kScoreSlots, Size::kMerged;

  unsigned char* base;
  __device__ explicit Pipe(unsigned char* memory) {
    base = memory + ((1024 - SharedAddress(memory) % 1024) % 1024);
  }
  __device__ unsigned char* Keys(int chunk) const { return base + chunk % kKeySlots * kTile; }
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
    float* at = reinterpret_cast<float*>(base + Size::kGauges) + step % 2 * 3 * 64 * kPanels;
    return {at, at + 64 * kPanels, at + 2 * 64 * kPanels};
  }
  __device__ float* Rows(int step, int i) const {
    return reinterpret_cast<float*>(base + Size::kRows) + (step % 2 * 2 + i) * kTileRows;
  }
  __device__ Step* StepOf(int step) const {
    return reinterpret_cast<Step*>(base + Size::kSteps + step % 2 * 64);
  }

  // Barriers: tiles loaded; a step published, scored, and done with. Waits are for the chunk's or
  // step's own turn of the slot.
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + i;
  }
  __device__ uint64_t* KeysLoaded(int chunk) const { return Barrier(chunk % kKeySlots); }
  __device__ uint64_t* StreamsLoaded(int chunk) const { return Barrier(2 + chunk % kSlots); }
  __device__ uint64_t* Published(int step) const { return Barrier(5 + step % 2); }
  __device__ uint64_t* Scored(int step) const { return Barrier(7 + step % 2); }
  __device__ uint64_t* Done(int step) const { return Barrier(9 + step % 2); }
  __device__ int* SharedInt() const { return reinterpret_cast<int*>(Barrier(11)); }

  __device__ void WaitKeys(int chunk) const {
    WaitBarrier(KeysLoaded(chunk), chunk / kKeySlots % 2);
  }
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
  /// Until the step two before is done with, so that this one can be published.
  __device__ void WaitRoom(int step) const { WaitBarrier(Done(step), (step / 2 + 1) % 2); }

  __device__ void Start() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kKeySlots; ++i) InitBarrier(KeysLoaded(i), 1);
      for (int i = 0; i < kSlots; ++i) InitBarrier(StreamsLoaded(i), 1);
      for (int i = 0; i < 2; ++i) {
        InitBarrier(Published(i), 128);
        InitBarrier(Scored(i), 128);
        InitBarrier(Done(i), 128 * kPanels);
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

/// A chunk of a walk; row < 0: none.
struct Chunk {
  int64_t row = -1;
  int count = 0, span = 0;
  bool first = false;
};

template <bool kReverse>
__device__ Chunk TakeChunk(Walk* walk) {
  Chunk chunk;
  if (!walk->template Next<kReverse>()) return chunk;
  chunk.row = walk->row;
  chunk.count = walk->count;
  chunk.span = walk->span;
  chunk.first = walk->first;
  return chunk;
}

struct WeigherArgs {
  const CUtensorMap* keys;
  bool from_start;           // from the states that spans start from, not the identity
  const float* lse;          // [T, H], of gradient scans
  const float* minus_delta;  // [T, H]
};

/// lse (base 2) and -delta of a chunk's row, loaded ahead by the first 64 threads.
struct RowValues {
  float lse = 0.0f, minus_delta = 0.0f;

  __device__ void Load(const WeigherArgs& in, const Chunk& chunk, int heads, int head) {
    lse = minus_delta = 0.0f;
    if (chunk.row < 0 || static_cast<int>(threadIdx.x) >= chunk.count) return;
    const int64_t i = (chunk.row + threadIdx.x) * heads + head;
    lse = in.lse[i] * kLog2E;
    minus_delta = in.minus_delta[i];
  }
};

/// Gauge, normaliser and shift of an item's own state; the carriers store the rest.
template <int kPanels>
__device__ void StoreFeatures(const WalkArgs& args, const DeviceItem& item, int head,
                              const OwnFeature (&own)[kPanels]) {
  float* to =
      args.states + (static_cast<int64_t>(item.slot) * args.heads + head) * args.layout.size;
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    StoreFeature(to, args.layout, OwnColumn() + 64 * i, own[i]);
  }
  if (threadIdx.x != 0) return;
  to[args.layout.shift] = args.plan.log_decay[head] * static_cast<float>(item.end - item.begin);
}

struct NoScorer {
  __device__ void operator()(int, const Step&) const {}
};

/// The scorer's part, where it is a warpgroup of its own.
template <class Pipe, class Scorer>
__device__ void RunScorer(const Pipe& mem, Scorer scorer) {
  for (int step = 0;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) return;
    scorer(step, now);
  }
}

/// Weighs as many of the chunk's `left` rows as may be weighed at once, and returns them.
template <bool kReverse, bool kGuard, int kPanels, int kStreams, int kSlots, int kScores>
__device__ Window WeighStep(const Pipe<kPanels, kStreams, kSlots, kScores>& mem, int chunk,
                            int step, const Window& left, float decay, const RowValues& values,
                            unsigned long long* slow_chunks, OwnFeature (&own)[kPanels]) {
  const float *row_shift = nullptr, *row_extra = nullptr;
  if constexpr (kReverse) {
    float* rows = mem.Rows(step, 0);
    if (threadIdx.x < kTileRows) {
      rows[threadIdx.x] = values.lse;
      rows[kTileRows + threadIdx.x] = values.minus_delta;
    }
    WarpgroupBarrier(kWeigherBarrier);
    row_shift = rows;
    row_extra = rows + kTileRows;
  }
  const unsigned char* keys = mem.Keys(chunk);
  Window window = left;
  while (WeighKeys<kReverse, kGuard, kPanels>(keys, mem.Weights(step), window, decay, row_shift,
                                              row_extra, mem.GaugesOf(step), own)) {
    if (threadIdx.x == 0) atomicAdd(slow_chunks, 1ull);
    window = ShrinkWindow<kReverse, kPanels>(keys, window, decay, row_shift, own, mem.SharedInt());
  }
  return window;
}

/// The weigher's part of a scan of one item and head. Where there are three slots it also loads the
/// streams; else the scorer does, for the chunk after `fresh` ones, past the first two.
template <bool kReverse, bool kGuard, int kPanels, int kStreams, int kSlots, int kScores,
          class Scorer>
__device__ void RunWeigher(const Pipe<kPanels, kStreams, kSlots, kScores>& mem,
                           const WalkArgs& args, const DeviceItem& item, int head,
                           const WeigherArgs& in, const CUtensorMap* const (&streams)[kStreams],
                           Scorer scorer) {
  const float decay = args.plan.log_decay[head] * kLog2E;
  Walk walk(args.plan, item, kReverse);
  Chunk now = TakeChunk<kReverse>(&walk), next = TakeChunk<kReverse>(&walk);
  if (threadIdx.x == 0) {
    if (now.row >= 0) mem.LoadKeys(0, in.keys, head, now.row);
    if (now.row >= 0) mem.LoadStreams(0, streams, head, now.row);
    if (next.row >= 0) mem.LoadKeys(1, in.keys, head, next.row);
    if (kSlots == 2 && next.row >= 0) mem.LoadStreams(1, streams, head, next.row);
  }
  OwnFeature own[kPanels];
  RowValues values, next_values;
  if constexpr (kReverse) values.Load(in, now, args.heads, head);
  int step = 0;
  for (int chunk = 0; now.row >= 0; ++chunk) {
    if (now.first) {
      const float* start = in.from_start ? StartOf(args, item, now.span, head, kReverse) : nullptr;
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        own[i] = LoadFeature(start, args.layout, OwnColumn() + 64 * i);
      }
    }
    if constexpr (kReverse) next_values.Load(in, next, args.heads, head);
    mem.WaitKeys(chunk);
    for (Window left{0, now.count}; left.begin < left.end; ++step) {
      mem.WaitRoom(step);
      const bool fresh = kReverse ? left.end == now.count : left.begin == 0;
      if (kSlots == 3 && fresh && threadIdx.x == 0 && next.row >= 0) {
        // All steps of the chunk two before are done: its tiles can go.
        mem.LoadStreams(chunk + 1, streams, head, next.row);
      }
      const Window window =
          WeighStep<kReverse, kGuard>(mem, chunk, step, left, decay, values, args.slow_chunks, own);
      if (threadIdx.x == 0) {
        *mem.StepOf(step) = {now.row, next.row, window, now.span, false, now.first && fresh, fresh};
      }
      Arrive(mem.Published(step));
      if constexpr (PipeSize<kPanels, kStreams, kSlots, kScores>::kMerged && kScores > 0) {
        mem.WaitPublished(step);
        scorer(step, *mem.StepOf(step));
      }
      left = kReverse ? Window{left.begin, window.begin} : Window{window.end, left.end};
    }
    if (!kGuard) WarpgroupBarrier(kWeigherBarrier);  // else every thread has passed WeighKeys'
    const Chunk after = TakeChunk<kReverse>(&walk);
    if (threadIdx.x == 0 && after.row >= 0) mem.LoadKeys(chunk + 2, in.keys, head, after.row);
    values = next_values;
    now = next;
    next = after;
  }
  if constexpr (!kGuard) StoreFeatures<kPanels>(args, item, head, own);
  mem.WaitRoom(step);
  if (threadIdx.x == 0) mem.StepOf(step)->stop = true;
  Arrive(mem.Published(step));
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
