// Tiles, products and masks that the Hopper kernels of softmax attention share.
//
// A tile [rows][D] lies in shared memory as D / 64 panels [rows][64] (kernels/hopper.cuh), each
// loaded as one box. An accumulator [64][N] of a warpgroup holds, in thread 4 g + t of warp w, of
// each 8 columns 8 j numbers d[4 j ..]: row 16 w + g, columns 8 j + 2 t and + 1, then the same of
// row + 8.
#pragma once

#include "kernels/hopper.cuh"
#include "kernels/softmax_attention/hopper_places.h"

namespace ela::kernels::cuda::softmax {

#ifdef ELA_HOPPER_CODE

struct TileOfHead {
  int tile, head;
};

/// The i-th of all tiles of all heads: tile by tile of `together` heads, then of the next ones.
__device__ inline TileOfHead NthTile(int i, int tiles, int heads, int together) {
  const int first = i / (tiles * together) * together, rest = i % (tiles * together);
  const int part = min(together, heads - first);
  return {rest / part, first + rest % part};
}

/// A tile of `kRows` rows at a byte address, as products take it.
template <int kRows>
class Operand {
 public:
  __device__ explicit Operand(uint32_t address)
      : low_(((address & 0x3ffffu) >> 4) | (kRows * 128 >> 4) << 16) {}
  /// Step s of 16 columns: the tile's rows run along M or N of the product.
  __device__ uint64_t AlongRows(int s) const { return At(s / 4 * kRows * 128 + s % 4 * 32); }
  /// Step s of 16 rows: the tile's rows are summed over.
  __device__ uint64_t OverRows(int s) const { return At(s * 2048); }

 private:
  // 8-row groups are 1024 bytes apart, 128-byte swizzle.
  static constexpr uint64_t kHigh = uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32;
  // No carry: shared memory has less than 2^18 bytes.
  __device__ uint64_t At(int bytes) const {
    return kHigh | (low_ + static_cast<uint32_t>(bytes >> 4));
  }
  uint32_t low_;
};

/// The first lane's value, which all lanes have: in a register that a warp shares.
__device__ inline int Uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

#define ELA_ACC8(d, i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define ELA_ACC64(d)                                                                 \
  ELA_ACC8(d, 0), ELA_ACC8(d, 8), ELA_ACC8(d, 16), ELA_ACC8(d, 24), ELA_ACC8(d, 32), \
      ELA_ACC8(d, 40), ELA_ACC8(d, 48), ELA_ACC8(d, 56)
#define ELA_ACC64_LIST                                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "  \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "  \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

/// d [64][128] = (accumulate ? d : 0) + A B, one step of 16.
template <bool kTransposeA, bool kTransposeB>
__device__ inline void Wgmma(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ELA_ACC64_LIST
      ", %64, %65, p, 1, 1, %67, %68;\n"
      "}\n"
      : ELA_ACC64(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposeA ? 1 : 0),
        "n"(kTransposeB ? 1 : 0));
}
template <bool kTransposeB>
__device__ inline void Wgmma(float (&d)[64], const uint32_t* a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ELA_ACC64_LIST
      ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n"
      "}\n"
      : ELA_ACC64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(kTransposeB ? 1 : 0));
}
/// The same for d [64][64], whose products take the lower half of a descriptor.
template <bool kTransposeA, bool kTransposeB>
__device__ inline void Wgmma(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
  hopper::WgmmaShared<kTransposeA, kTransposeB>(d, static_cast<uint32_t>(a),
                                                static_cast<uint32_t>(b), accumulate);
}
template <bool kTransposeB>
__device__ inline void Wgmma(float (&d)[32], const uint32_t* a, uint64_t b, bool accumulate) {
  hopper::WgmmaRegisters<kTransposeB>(d, a, static_cast<uint32_t>(b), accumulate);
}

/// Keeps what reads d after this call from moving before it, or what wrote d from moving after.
template <int N>
__device__ inline void Pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// One arrival of a warp, after what its lanes did before.
__device__ inline void ArriveWarp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) hopper::Arrive(barrier);
}

/// Loads tile [kRows][kDim] of a head; by one thread.
template <int kRows, int kDim>
__device__ inline void LoadTile(const CUtensorMap* map, uint64_t* loaded, unsigned char* to,
                                int head, int tile) {
  hopper::ExpectBytes(loaded, kRows * kDim * 2);
#pragma unroll
  for (int panel = 0; panel < kDim / 64; ++panel) {
    hopper::LoadPanel(map, loaded, to + panel * kRows * 128, head * kDim + 64 * panel,
                      tile * kRows);
  }
}

/// Loads the places of a tile of `rows`; by one thread.
__device__ inline void LoadPlaces(const Place* places, uint64_t* loaded, Place* to, int tile,
                                  int rows) {
  const int bytes = rows * static_cast<int>(sizeof(Place));
  hopper::ExpectBytes(loaded, bytes);
  hopper::LoadBulk(to, places + int64_t{tile} * rows, bytes, loaded);
}

__device__ inline bool Meet(Place query, int32_t key_document, int32_t key_position) {
  return query.document == key_document && key_position <= query.position;
}

/// A place of a query as Meet takes it: positions don't matter where attention is not causal.
__device__ inline Place QueryPlace(const Tiles& queries, int row, bool causal) {
  Place place = queries.places[row];
  if (!causal) place.position = INT32_MAX;
  return place;
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::softmax
