// What a warpgroup does with accumulators, and the shared memory of blocks that only read a state.
#pragma once

#include "kernels/early_launch.cuh"
#include "kernels/ela/cuda/hopper_weigh.cuh"

namespace ela::kernels::cuda::hopper {

/// Where things are in a block's shared memory, in bytes; tiles are kPanels panels.
template <int kPanels, int kTiles>
struct MemorySize {
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kStages = 2;
  static constexpr int kState = kStages * kTiles * kTile;   // a copy of S
  static constexpr int kHalves = kState + kPanels * kTile;  // of the normaliser
  static constexpr int kGauges = kHalves + kPanels * kNarrowBytes;
  static constexpr int kRows = kGauges + 2 * 64 * kPanels * 4;  // four arrays of 64
  static constexpr int kBarriers = kRows + 4 * kTileRows * 4;
  static constexpr int kEnd = kBarriers + 64;
  static constexpr int kBytes = kEnd + 1024;  // to align
};

#ifdef ELA_HOPPER_CODE

/// The shared memory of a block that reads one state.
template <int kPanels, int kTiles>
struct Memory : MemorySize<kPanels, kTiles> {
  using Size = MemorySize<kPanels, kTiles>;
  using Size::kTile, Size::kStages;

  unsigned char* base;
  __device__ explicit Memory(unsigned char* memory) {
    const uint32_t address = SharedAddress(memory);
    base = memory + ((1024 - address % 1024) % 1024);
  }
  __device__ unsigned char* Tile(int stage, int tile) const {
    return base + (stage * kTiles + tile) * kTile;
  }
  __device__ uint32_t StateCopy(int warpgroup) const {
    return SharedAddress(base + Size::kState + warpgroup * kTile);
  }
  __device__ Gauges BlockGauges() const {
    float* at = reinterpret_cast<float*>(base + Size::kGauges);
    return {at, at + 64 * kPanels};
  }
  __device__ unsigned char* Halves() const { return base + Size::kHalves; }
  __device__ float* RowValues(int i) const {
    return reinterpret_cast<float*>(base + Size::kRows) + i * kTileRows;
  }
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + i;
  }

  __device__ void Start() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages * kPanels; ++i) InitBarrier(Barrier(i), 1);
      FenceProxy();
    }
    __syncthreads();
  }
  /// Rows from `row` of a head's tile into one of a stage; by one thread, as Load is.
  __device__ void LoadTile(const CUtensorMap* map, uint64_t* loaded, int stage, int tile, int head,
                           int64_t row) const {
    ExpectBytes(loaded, kTile);
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      LoadPanel(map, loaded, Tile(stage, tile) + panel * kPanelBytes, 64 * (kPanels * head + panel),
                static_cast<int>(row));
    }
  }
  /// Rows from `row` of a head's tiles into a stage.
  __device__ void Load(int stage, const CUtensorMap* const (&maps)[kTiles], int head,
                       int64_t row) const {
    ExpectBytes(Barrier(stage), kTiles * kTile);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        LoadPanel(maps[i], Barrier(stage), Tile(stage, i) + panel * kPanelBytes,
                  64 * (kPanels * head + panel), static_cast<int>(row));
      }
    }
  }
  __device__ void Wait(int chunk) const {
    WaitBarrier(Barrier(chunk % kStages), chunk / kStages % 2);
  }
};

/// One arrival for the warp.
__device__ inline void ArriveWarp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32u == 0) Arrive(barrier);
}

/// The thread's warpgroup; from one lane, so that what depends on it is compiled as uniform.
__device__ inline int Role() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128u), 0);
}

struct Place {
  int warpgroup, warp, row, t;  // this thread's first row in an accumulator, and lane % 4
  __device__ Place() {
    const int thread = static_cast<int>(threadIdx.x);
    warpgroup = thread / 128, warp = thread / 32 % 4, t = thread % 4;
    row = 16 * warp + thread % 32 / 4;
  }
};

/// All features of 64 columns of a state.
template <int kPanels>
__device__ void LoadState(const float* state, const StateLayout& l, int column0, const Place& at,
                          float (&s)[kPanels][32]) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    LoadStateTile(state, l, 64 * i, column0, at.warp, s[i]);
  }
}

/// The gauge and the normaliser of a state, for a block that only reads it.
template <int kPanels>
__device__ void LoadGauges(const float* state, const StateLayout& l, const Gauges& gauges) {
  for (int i = static_cast<int>(threadIdx.x); i < 64 * kPanels; i += static_cast<int>(blockDim.x)) {
    const OwnFeature feature = LoadFeature(state, l, i);
    gauges.r[i] = feature.m;
    gauges.norm[i] = feature.c;
  }
}

/// x over the four lanes that share an accumulator's rows.
__device__ inline float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Scales a thread's two rows of an accumulator.
__device__ inline void ScaleRows(float low, float high, float (&s)[32]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    s[4 * j] *= low;
    s[4 * j + 1] *= low;
    s[4 * j + 2] *= high;
    s[4 * j + 3] *= high;
  }
}

__device__ inline void AddPanel(float (&s)[32], const float (&u)[32]) {
#pragma unroll
  for (int j = 0; j < 32; ++j) s[j] += u[j];
}

/// What of an accumulator [64][64] lies on the diagonal and below (kUpper: above) it, as masks of
/// its pairs.
template <bool kUpper>
struct TriangleMask {
  uint32_t masks[9];

  __device__ explicit TriangleMask(const Place& at) {
    // In blocks of 8 x 8 only those on the diagonal have parts. The thread's rows are in blocks
    // 2 warp + i; what counts is by how many blocks of columns block j is further: k - 1 - 2 warp.
    const int off = static_cast<int>(threadIdx.x % 32u / 4u) - 2 * at.t;
    const uint32_t low = kUpper ? off <= 0 : off >= 0, high = kUpper ? off <= 1 : off >= 1;
    const uint32_t diagonal = low * 0xffffu | high * 0xffff0000u;
#pragma unroll
    for (int k = 0; k < 9; ++k) {
      const int further = k - 1 - 2 * at.warp;
      masks[k] = further == 0 ? diagonal : (further > 0) == kUpper ? 0xffffffffu : 0u;
    }
  }
  /// Applies it to step s of the accumulator's fragments.
  __device__ void operator()(int s, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] &= masks[2 * s + i / 2 - i % 2 + 1];
  }
};

/// The window's rows of an accumulator, rounded to bf16, to 64 columns of global rows. Lanes
/// exchange pairs so that a quad writes 32 bytes at once.
__device__ inline void WriteAccumulator(const Place& at, const Window& window, __nv_bfloat16* to,
                                        int64_t stride, const float (&d)[32]) {
  const bool odd = at.t % 2 != 0;
  __nv_bfloat16* const first = to + at.row * stride + 8 * (at.t % 2) + 4 * (at.t / 2);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const uint32_t low = Pack(d[4 * j + 2 * i], d[4 * j + 2 * i + 1]);
      const uint32_t high = Pack(d[4 * j + 4 + 2 * i], d[4 * j + 5 + 2 * i]);
      const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
      if (!window.Holds(at.row + 8 * i)) continue;
      *reinterpret_cast<uint2*>(first + 8 * i * stride + 8 * j) =
          odd ? make_uint2(got, high) : make_uint2(low, got);
    }
  }
}

#endif  // ELA_HOPPER_CODE

/// The kernel is set up while the one before it still runs; it begins with AwaitEarlier().
template <class Args>
void Launch(void (*kernel)(Args), dim3 grid, int threads, int bytes, cudaStream_t stream,
            const Args& args) {
  if (grid.x == 0) return;
  ELA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  ELA_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

}  // namespace ela::kernels::cuda::hopper
