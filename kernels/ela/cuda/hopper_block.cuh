// What a warpgroup does with accumulators, and the shared memory of blocks that only read a state.
#pragma once

#include "kernels/ela/cuda/hopper_scan.cuh"

namespace ela::kernels::cuda::hopper {

/// Where things are in a block's shared memory, in bytes; tiles are kPanels panels.
template <int kPanels, int kTiles>
struct MemorySize {
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kStages = 2;
  static constexpr int kState = kStages * kTiles * kTile;  // a copy of S
  static constexpr int kGauges = kState + kPanels * kTile;
  static constexpr int kRows = kGauges + 3 * 64 * kPanels * 4;  // two arrays of 64
  static constexpr int kBarriers = kRows + 2 * kTileRows * 4;
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
    return {at, at + 64 * kPanels, at + 2 * 64 * kPanels};
  }
  __device__ float* RowValues(int i) const {
    return reinterpret_cast<float*>(base + Size::kRows) + i * kTileRows;
  }
  __device__ uint64_t* Barrier(int i) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + i;
  }

  __device__ void Start() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) InitBarrier(Barrier(i), 1);
      FenceProxy();
    }
    __syncthreads();
  }
  /// Rows from `row` of a head's tiles into a stage; by one thread.
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

/// Named barrier of a carrier, and of all of them.
__device__ inline int CarrierBarrier(int carrier) { return kWeigherBarrier + 1 + carrier; }
inline constexpr int kCarriersBarrier = kWeigherBarrier + 3;

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

/// Brings the state into the chunk's gauge.
template <int kPanels>
__device__ void ShrinkState(const Gauges& gauges, const Place& at, float (&s)[kPanels][32]) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    ScaleRows(gauges.shrink[64 * i + at.row], gauges.shrink[64 * i + at.row + 8], s[i]);
  }
}

/// u = weights^T values over the rows of a chunk; starts it only.
__device__ inline void UpdatePanel(uint32_t weights, uint32_t values, float (&u)[32]) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    WgmmaShared<true, true>(u, MnMajor(weights, s), MnMajor(values, s), s > 0);
  }
}

/// Scores of what earlier rows (columns) give to later ones into a panel; den, if there is one,
/// takes in their sums.
__device__ inline void StoreLower(uint32_t panel, const Place& at, const float (&score)[32],
                                  float (&den)[2]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.row + 8 * i, column = 8 * j + 2 * at.t;
      const uint32_t pair = Pack(column <= row ? score[4 * j + 2 * i] : 0.0f,
                                 column + 1 <= row ? score[4 * j + 2 * i + 1] : 0.0f);
      const float2 two = Unpack(pair);
      den[i] += two.x + two.y;
      StoreShared(panel + static_cast<uint32_t>(ChunkOffset(row, j) + 4 * at.t), pair);
    }
  }
}

/// Weights of the window's rows, in A fragments, over what they were made from.
template <int kPanels>
__device__ void StoreFragments(uint32_t tile, const Place& at, const Window& window,
                               const uint32_t (&a)[4 * kPanels][4]) {
  __syncwarp();  // other lanes load what this one overwrites
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.row + 8 * i;
    if (!window.Holds(row)) continue;
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        StoreShared(tile + static_cast<uint32_t>(ChunkOffset(row, 2 * s + half) + 4 * at.t),
                    a[s][2 * half + i]);
      }
    }
  }
}

/// What lane t of a quad holds for its quad's lanes 0..3 becomes what they hold for it.
__device__ inline void TransposeQuad(int t, uint32_t (&w)[4]) {
  const bool odd = (t & 1) != 0, high = (t & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
    w[i] = odd ? got : w[i];
    w[i + 1] = odd ? w[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
    w[i] = high ? got : w[i];
    w[i + 2] = high ? w[i + 2] : got;
  }
}

/// The window's rows of an accumulator, rounded to bf16, to 64 columns of global rows.
__device__ inline void WriteAccumulator(const Place& at, const Window& window, __nv_bfloat16* to,
                                        int64_t stride, const float (&d)[32]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.row + 8 * i;
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      uint32_t w[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        w[c] = Pack(d[4 * (j + c) + 2 * i], d[4 * (j + c) + 2 * i + 1]);
      }
      TransposeQuad(at.t, w);
      if (!window.Holds(row)) continue;
      *reinterpret_cast<uint4*>(to + row * stride + (j + at.t) * 8) =
          make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

__device__ inline void AddPanel(float (&s)[32], const float (&u)[32]) {
#pragma unroll
  for (int j = 0; j < 32; ++j) s[j] += u[j];
}

#endif  // ELA_HOPPER_CODE

template <class Args>
void Launch(void (*kernel)(Args), dim3 grid, int threads, int bytes, cudaStream_t stream,
            const Args& args) {
  if (grid.x == 0) return;
  ELA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<grid, static_cast<unsigned>(threads), static_cast<size_t>(bytes), stream>>>(args);
  ELA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace ela::kernels::cuda::hopper
