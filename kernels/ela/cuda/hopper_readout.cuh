// How forward kernels end: the normaliser, and rows of y by way of shared memory.
#pragma once

#include "kernels/ela/cuda/hopper_block.cuh"
#include "kernels/ela/cuda/hopper_launch.h"

namespace ela::kernels::cuda::hopper {

#ifdef ELA_HOPPER_CODE

/// den, two parts in a quad's first thread, becomes 1 / normaliser of the thread's two rows; writes
/// lse.
__device__ inline void FinishNormaliser(const ForwardArgs& p, const Place& at, int head,
                                        int64_t row0, const Window& window, float log_decay,
                                        const float (&gauge)[2], const float (&den)[4],
                                        float (&inverse)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = __shfl_sync(0xffffffffu, den[2 * i] + den[2 * i + 1], 0, 4);
    inverse[i] = Reciprocal(sum);
    const int row = at.row + 8 * i;
    if (at.t != 0 || !window.Holds(row)) continue;
    p.lse[(row0 + row) * p.walk.heads + head] =
        (gauge[i] + __log2f(sum)) * kLn2 + log_decay * window.Step<false>(row);
  }
}

/// Where 64 columns of a chunk's rows go: `map` in boxes of 16 rows.
struct Output {
  const CUtensorMap* map;
  void* data;
  int64_t stride;
  int column, row;

  /// The window's rows of an accumulator, rounded to bf16, by way of this warp's rows of `panel`,
  /// which the copy engine reads until WaitStoresRead() in the warp's first lane.
  __device__ void Write(uint32_t panel, const Place& at, const Window& window,
                        const float (&d)[32]) const {
    const int first = 16 * at.warp, lane = static_cast<int>(threadIdx.x % 32u);
    StorePanel(panel, at.warp, d);
    if (window.begin <= first && window.end >= first + 16) {
      FenceProxy();
      __syncwarp();
      if (lane != 0) return;
      StoreBox(map, panel + static_cast<uint32_t>(128 * first), column, row + first);
      CommitStores();
      return;
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 16 * 8; i += 32) {
      const int at_row = first + i / 8;
      if (!window.Holds(at_row)) continue;
      auto* to = static_cast<__nv_bfloat16*>(data) + (int64_t{row} + at_row) * stride + column;
      reinterpret_cast<uint4*>(to)[i % 8] =
          LoadShared16(panel + static_cast<uint32_t>(ChunkOffset(at_row, i % 8)));
    }
    __syncwarp();
  }
};

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
