// What loads the tiles of a pipeline (hopper_pipe.cuh), and its weigher and scorer. The carriers
// are each scan's own.
#pragma once

#include "kernels/ela/cuda/hopper_pipe.cuh"

namespace ela::kernels::cuda::hopper {

#ifdef ELA_HOPPER_CODE

/// What loads the tiles of an item, by a warp, and the chunks' lse and -delta (unless it is null),
/// which the warp's lanes copy: arrivals at KeysLoaded.
template <bool kReverse, int kPanels, int kStreams, int kScores>
struct Loader {
  static constexpr int kKeyArrivals = 33;

  const Pipe<kPanels, kStreams, kScores>& mem;
  const WalkArgs& args;
  int head;
  const CUtensorMap* keys;
  const CUtensorMap* const (&streams)[kStreams];
  const float* lse = nullptr;  // [T, H]
  const float* minus_delta = nullptr;

  __device__ void Start(const DeviceItem& item) const {
    if (threadIdx.x % 32u == 0) *mem.WalkOf() = Walk(args.plan, item, kReverse);
    LoadKeys(0);
    LoadKeys(1);
    LoadStreams(0);
    LoadStreams(1);
  }
  /// Once the last step of a chunk is published: its keys are weighed.
  __device__ void AfterPublished(int chunk) const { LoadKeys(chunk + 2); }
  /// The same, where the step before that will soon be done with.
  __device__ void AfterDone(int step, int chunk) const {
    if (chunk == 0) return;
    mem.WaitDone(step - 1);
    LoadStreams(chunk + 1);
  }

 private:
  __device__ void LoadKeys(int chunk) const {
    Chunk next;
    if (threadIdx.x % 32u == 0) {
      Walk walk = *mem.WalkOf();
      if (walk.template Next<kReverse>()) next = {walk.row, walk.count, walk.span, walk.first};
      *mem.WalkOf() = walk;
      *mem.ChunkOf(chunk) = next;
      if (next.row >= 0) {
        mem.LoadKeys(chunk, keys, head, next.row);
      } else {
        Arrive(mem.KeysLoaded(chunk));
      }
    }
    const int row0 = __shfl_sync(0xffffffffu, next.row, 0);
    const int count = __shfl_sync(0xffffffffu, row0 < 0 ? 0 : next.count, 0);
    for (int row = static_cast<int>(threadIdx.x % 32u); row < kTileRows; row += 32) {
      const int64_t i = row < count ? int64_t{row0 + row} * args.heads + head : 0;
      CopyFloat(mem.RowsOf(chunk, 0) + row, lse + i, row < count);
      if (minus_delta == nullptr) continue;
      CopyFloat(mem.RowsOf(chunk, 1) + row, minus_delta + i, row < count);
    }
    ArriveOnCopies(mem.KeysLoaded(chunk));
    __syncwarp();
  }
  __device__ void LoadStreams(int chunk) const {
    if (threadIdx.x % 32u == 0) {
      const int row = mem.ChunkOf(chunk)->row;
      if (row >= 0) mem.LoadStreams(chunk, streams, head, row);
    }
    __syncwarp();
  }
};

/// Gauges and normalisers of the state a span starts from (null: of nothing), by the weigher; each
/// warp its own columns.
__device__ inline void LoadOwn(const float* state, const StateLayout& l, OwnFeature* own) {
  for (int column = OwnColumn(); column < l.features; column += 64) {
    if (threadIdx.x % 2u == 0) own[column] = LoadFeature(state, l, column);
  }
  __syncwarp();
}

/// The scorer's part, where it is a warpgroup of its own.
template <class Pipe, class Loader, class Scorer>
__device__ void RunScorer(const Pipe& mem, const DeviceItem& item, const Loader& loader,
                          Scorer scorer) {
  const bool loads = Pipe::kScorerLoads && threadIdx.x / 32u % 4u == 0;
  if (loads) loader.Start(item);
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) return;
    if (now.fresh) ++chunk;
    if (loads && now.last) loader.AfterPublished(chunk);
    scorer(step, now);
    if (loads && now.last) loader.AfterDone(step, chunk);
  }
}

/// Weighs as many of the chunk's `left` rows as may be weighed at once, and returns them.
template <bool kReverse, bool kFlat, int kPanels, int kStreams, int kScores>
__device__ Window WeighStep(const Pipe<kPanels, kStreams, kScores>& mem, int chunk, int step,
                            const Window& left, float decay, unsigned long long* slow_chunks) {
  KeyRows in{mem.Keys(chunk), left, decay, nullptr, nullptr};
  if constexpr (kReverse) in.lse = mem.RowsOf(chunk, 0), in.extra = mem.RowsOf(chunk, 1);
  const OwnFeature* own = mem.Own(step);
  bool grows = false;
  const auto weigh = [&] {
    bool raised = false;
#pragma unroll 1
    for (int panel = 0; panel < kPanels; ++panel) {
      WeighPanel<kReverse, kFlat>(in, panel, mem.Weights(step), mem.GaugesOf(step), own,
                                  mem.Own(step + 1), &raised, &grows);
    }
    if (threadIdx.x % 32u == 0) mem.Raised(step)[threadIdx.x / 32u] = raised;
    FenceProxy();
  };
  weigh();
  if (GroupAny<1>(kWeigherBarrier, grows)) {
    // Nothing but shared memory has changed.
    if (threadIdx.x == 0) atomicAdd(slow_chunks, 1ull);
    in.window = ShrinkWindow<kReverse, kPanels>(in, own, mem.SharedInt());
    weigh();
  }
  return in.window;
}

/// The weigher's part of a scan of one item and head.
template <bool kReverse, bool kFlat, int kPanels, int kStreams, int kScores, class Scorer>
__device__ void RunWeigher(const Pipe<kPanels, kStreams, kScores>& mem, const WalkArgs& args,
                           const DeviceItem& item, int head, Scorer scorer) {
  const float decay = kFlat ? 0.0f : args.plan.log_decay[head] * kLog2E;
  int step = 0;
  for (int chunk = 0;; ++chunk) {
    mem.WaitKeys(chunk);
    const Chunk now = *mem.ChunkOf(chunk);
    if (now.row < 0) break;
    if (now.first) {
      LoadOwn(StartOf(args, item, now.span, head, kReverse), args.layout, mem.Own(step));
    }
    for (Window left{0, now.count}; left.begin < left.end; ++step) {
      mem.WaitRoom(step);
      const bool fresh = kReverse ? left.end == now.count : left.begin == 0;
      const Window window =
          WeighStep<kReverse, kFlat>(mem, chunk, step, left, decay, args.slow_chunks);
      left = kReverse ? Window{left.begin, window.begin} : Window{window.end, left.end};
      if (threadIdx.x == 0) {
        *mem.StepOf(step) = {
            now.row, window, now.span, false, now.first && fresh, fresh, left.begin == left.end};
      }
      ArriveWarp(mem.Published(step));
      if constexpr (PipeSize<kPanels, kStreams, kScores>::kMerged) {
        mem.WaitPublished(step);
        scorer(step, *mem.StepOf(step));
      }
    }
  }
  mem.WaitRoom(step);
  if (threadIdx.x == 0) mem.StepOf(step)->stop = true;
  ArriveWarp(mem.Published(step));
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
