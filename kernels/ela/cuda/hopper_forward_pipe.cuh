// Shared memory of the forward scan (hopper_forward.cu): tiles, what keepers publish of a step, and
// what loads the tiles.
#pragma once

#include "kernels/ela/cuda/hopper_block.cuh"
#include "kernels/ela/cuda/hopper_launch.h"

namespace ela::kernels::cuda::hopper {

/// Where things are in a block's shared memory, in bytes.
template <int kPanels>
struct ForwardSize {
  static constexpr int kThreads = 256 * kPanels;
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kChunkSlots = 8, kValueSlots = 3;
  static constexpr int kQueries = 2 * kTile;  // of 2 chunks, as the keys before them
  static constexpr int kValues = kQueries + 2 * kTile;
  static constexpr int kWeights = kValues + kValueSlots * kTile;
  static constexpr int kCopies = kWeights + 2 * kTile;           // of 2 steps, as what follows
  static constexpr int kHalves = kCopies + 2 * kPanels * kTile;  // normalisers as operands
  static constexpr int kOnes = kHalves + 2 * kPanels * kNarrowBytes;
  static constexpr int kGauges = kOnes + kNarrowBytes;
  static constexpr int kChunks = kGauges + 2 * 64 * kPanels * 4;
  static constexpr int kWalk = kChunks + kChunkSlots * 16;
  static constexpr int kSteps = kWalk + kPanels * 64;
  static constexpr int kBarriers = kSteps + 2 * 64;
  static constexpr int kBytes = kBarriers + 128 + 1024;          // to align
  static_assert((3 - kPanels) * (kBytes + 1024) <= 228 * 1024);  // blocks of a multiprocessor
};

#ifdef ELA_HOPPER_CODE

/// What readers are told about a step.
struct Step {
  int64_t row;  // first of the chunk
  Window window;
  bool stop;   // no step: the walk is over
  bool fresh;  // the first step of its chunk
  bool last;   // the last step of its chunk
};
static_assert(sizeof(Step) <= 64);

template <int kPanels>
struct ForwardMemory : ForwardSize<kPanels> {
  using Size = ForwardSize<kPanels>;
  using Size::kTile, Size::kValueSlots;

  unsigned char* base;
  __device__ explicit ForwardMemory(unsigned char* memory) {
    base = memory + ((1024 - SharedAddress(memory) % 1024) % 1024);
  }
  __device__ unsigned char* Keys(int chunk) const { return base + chunk % 2 * kTile; }
  __device__ unsigned char* Queries(int chunk) const {
    return base + Size::kQueries + chunk % 2 * kTile;
  }
  __device__ unsigned char* Values(int chunk) const {
    return base + Size::kValues + chunk % kValueSlots * kTile;
  }
  __device__ uint32_t Weights(int step) const {
    return SharedAddress(base + Size::kWeights + step % 2 * kTile);
  }
  /// Of S: 64 columns a tile.
  __device__ uint32_t Copy(int step) const {
    return SharedAddress(base + Size::kCopies + step % 2 * kPanels * kTile);
  }
  /// A tile [8][64] a panel, whose rows 0 and 1 are the normaliser's upper and lower half.
  __device__ unsigned char* Halves(int step) const {
    return base + Size::kHalves + step % 2 * kPanels * kNarrowBytes;
  }
  /// A tile [8][64] whose first row is ones, and the rest zeros.
  __device__ uint32_t Ones() const { return SharedAddress(base + Size::kOnes); }
  __device__ float* Gauge(int step) const {
    return reinterpret_cast<float*>(base + Size::kGauges) + step % 2 * 64 * kPanels;
  }
  __device__ Chunk* ChunkOf(int chunk) const {
    return reinterpret_cast<Chunk*>(base + Size::kChunks) + chunk % Size::kChunkSlots;
  }
  __device__ Walk* WalkOf(int reader) const {
    return reinterpret_cast<Walk*>(base + Size::kWalk + reader * 64);
  }
  __device__ Step* StepOf(int step) const {
    return reinterpret_cast<Step*>(base + Size::kSteps + step % 2 * 64);
  }

  // Barriers: tiles loaded; a step published, and read by the readers. Waits are for the chunk's
  // or step's own turn of the slot.
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + i;
  }
  __device__ uint64_t* KeysLoaded(int chunk) const { return Barrier(chunk % 2); }
  __device__ uint64_t* QueriesLoaded(int chunk) const { return Barrier(2 + chunk % 2); }
  __device__ uint64_t* ValuesLoaded(int chunk) const { return Barrier(4 + chunk % kValueSlots); }
  __device__ uint64_t* Published(int step) const { return Barrier(7 + step % 2); }
  __device__ uint64_t* Done(int step) const { return Barrier(9 + step % 2); }
  __device__ int* SharedInt() const { return reinterpret_cast<int*>(Barrier(11)); }

  __device__ void WaitKeys(int chunk) const { WaitBarrier(KeysLoaded(chunk), chunk / 2 % 2); }
  __device__ void WaitQueries(int chunk) const { WaitBarrier(QueriesLoaded(chunk), chunk / 2 % 2); }
  __device__ void WaitValues(int chunk) const {
    WaitBarrier(ValuesLoaded(chunk), chunk / kValueSlots % 2);
  }
  __device__ void WaitPublished(int step) const { WaitBarrier(Published(step), step / 2 % 2); }
  /// Until the step two before is done with, and so every one before it.
  __device__ void WaitRoom(int step) const { WaitBarrier(Done(step), (step / 2 + 1) % 2); }

  __device__ void Start() const {
    const auto thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int i = 0; i < 4 + kValueSlots; ++i) InitBarrier(Barrier(i), 1);
      for (int i = 0; i < 2; ++i) {
        InitBarrier(Published(i), 4 * kPanels);
        InitBarrier(Done(i), 4 * kPanels);
      }
    }
    // Halves but for their first two rows stay zeros.
    for (int i = thread; i < (Size::kGauges - Size::kHalves) / 4; i += Size::kThreads) {
      const int ones = (Size::kOnes - Size::kHalves) / 4;
      const bool one = i >= ones && i < ones + 32;
      reinterpret_cast<uint32_t*>(base + Size::kHalves)[i] = one ? 0x3f803f80u : 0u;
    }
    FenceProxy();
    __syncthreads();
  }

  /// By one thread.
  __device__ void Load(const CUtensorMap* map, uint64_t* loaded, unsigned char* to, int head,
                       int row) const {
    ExpectBytes(loaded, kTile);
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      LoadPanel(map, loaded, to + panel * kPanelBytes, 64 * (kPanels * head + panel), row);
    }
  }
};

/// What loads tiles, for a reader: keys and queries of its own chunks, every kPanels-th, two chunks
/// ahead, and the values of the chunk after.
template <int kPanels>
struct ForwardLoader {
  const ForwardArgs& p;
  const ForwardMemory<kPanels>& mem;
  int head, reader;

  __device__ void Start(const DeviceItem& item) const {
    *mem.WalkOf(reader) = Walk(p.walk.plan, item, false);
    for (int i = 0; i <= reader; ++i) Next(reader);
    for (int chunk = reader + kPanels; chunk < 2 + kPanels; chunk += kPanels) Find(chunk);
    for (int chunk = reader; chunk < 2; chunk += kPanels) {
      LoadKeys(chunk);
      LoadQueries(chunk);
      LoadValues(chunk);
    }
  }
  /// Where the rows of a chunk are, of this reader's the one after the last that was found. The
  /// other reader knows by when the chunk two before is published.
  __device__ void Find(int chunk) const {
    for (int i = 0; i < kPanels; ++i) Next(chunk);
  }
  __device__ void LoadKeys(int chunk) const {
    const int row = mem.ChunkOf(chunk)->row;
    if (row >= 0) {
      mem.Load(&p.k, mem.KeysLoaded(chunk), mem.Keys(chunk), head, row);
    } else {
      Arrive(mem.KeysLoaded(chunk));
    }
  }
  __device__ void LoadQueries(int chunk) const {
    const int row = mem.ChunkOf(chunk)->row;
    if (row >= 0) mem.Load(&p.q, mem.QueriesLoaded(chunk), mem.Queries(chunk), head, row);
  }
  __device__ void LoadValues(int chunk) const {
    const int row = mem.ChunkOf(chunk)->row;
    if (row >= 0) mem.Load(&p.v, mem.ValuesLoaded(chunk), mem.Values(chunk), head, row);
  }

 private:
  __device__ void Next(int chunk) const {
    Chunk next;
    Walk walk = *mem.WalkOf(reader);
    if (walk.template Next<false>()) next = {walk.row, walk.count, walk.span, walk.first};
    *mem.WalkOf(reader) = walk;
    *mem.ChunkOf(chunk) = next;
  }
};

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
