// Hopper's own instructions as attention uses them: barriers, the copy engine, products of tensor
// cores on tiles of 64 rows.
//
// A panel is [64 rows][64 bf16] in shared memory as the copy engine writes it with a 128-byte
// swizzle: 16-byte chunk c of row r lies at chunk c ^ (r & 7). Every product is a sequence of
// m64n64k16 steps; an operand is either K-major (its rows run along the product's M or N) or
// MN-major (its rows run along the summed dimension).
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace ela::kernels::cuda::hopper {

inline constexpr int kTileRows = 64;
inline constexpr int kPanelBytes = kTileRows * 128;

#ifdef __CUDACC__

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ELA_HOPPER_CODE 1
#endif

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Byte of 16-byte chunk `chunk` of a row inside a tile of panels; chunks 8.. are the next panel's.
__device__ inline int ChunkOffset(int row, int chunk) {
  return chunk / 8 * kPanelBytes + row * 128 + (((chunk % 8) ^ (row & 7)) << 4);
}

__device__ inline float2 Unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

__device__ inline uint32_t Pack(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// Elements beyond 2^20 as 2^20; NaN stays.
__device__ inline uint32_t Saturate2(uint32_t pair) {
  asm("min.NaN.bf16x2 %0, %0, %1;" : "+r"(pair) : "r"(0x49804980u));
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(pair) : "r"(0xc980c980u));
  return pair;
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#ifdef ELA_HOPPER_CODE

__device__ inline void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals));
}

__device__ inline void ExpectBytes(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ inline void WaitBarrier(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

/// One of the barrier's arrivals, after what this thread did before.
__device__ inline void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}

/// A panel at column x, row y of a tensor map.
__device__ inline void LoadPanel(const CUtensorMap* map, uint64_t* barrier, void* to, int x,
                                 int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y)
      : "memory");
}

/// `bytes` of contiguous memory, a multiple of 16 as both addresses are.
__device__ inline void LoadBulk(void* to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ inline void StoreBulk(void* to, const void* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(SharedAddress(from)), "r"(bytes)
               : "memory");
}
/// Ends a group of this thread's stores.
__device__ inline void CommitStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until all but the last kPending groups have left shared memory.
template <int kPending>
__device__ inline void WaitStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
/// Until all groups are in global memory.
__device__ inline void WaitStores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// Orders this thread's ordinary writes to shared memory before later reads by tensor cores and
/// the copy engine.
__device__ inline void FenceProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void WarpgroupBarrier(int id) {
  asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}

/// The same, and whether `p` holds for any thread.
__device__ inline bool WarpgroupAny(int id, bool p) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred in, out;\n"
      "setp.ne.b32 in, %2, 0;\n"
      "bar.red.or.pred out, %1, 128, in;\n"
      "selp.b32 %0, 1, 0, out;\n"
      "}\n"
      : "=r"(any)
      : "r"(id), "r"(static_cast<int>(p))
      : "memory");
  return any != 0;
}

/// Registers a thread of this warpgroup from here on.
template <int kRegisters, int kLaunched>
__device__ inline void SetRegisters() {
  if constexpr (kRegisters > kLaunched) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
}

__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Operand in shared memory, at a byte address: 8-row groups are 1024 bytes apart either way.
__device__ inline uint64_t Operand(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kLeading = uint64_t{kPanelBytes >> 4} << 16;
  return kSwizzle128 | kStride | kLeading | ((address & 0x3ffffu) >> 4);
}
/// Step s of 16 along the summed dimension.
__device__ inline uint64_t KMajor(uint32_t tile, int s) {
  return Operand(tile + static_cast<uint32_t>(s / 4 * kPanelBytes + s % 4 * 32));
}
__device__ inline uint64_t MnMajor(uint32_t panel, int s) {
  return Operand(panel + static_cast<uint32_t>(s * 2048));
}

#define ELA_ACC(d)                                                                                \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define ELA_ACC_LIST                                                                       \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

/// d [64][64] = (accumulate ? d : 0) + A B, one step; both operands in shared memory.
template <bool kTransposeA, bool kTransposeB>
__device__ inline void WgmmaShared(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ELA_ACC_LIST
      ", %32, %33, p, 1, 1, %35, %36;\n"
      "}\n"
      : ELA_ACC(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposeA ? 1 : 0),
        "n"(kTransposeB ? 1 : 0));
}

/// The same with A in registers.
template <bool kTransposeB>
__device__ inline void WgmmaRegisters(float (&d)[32], const uint32_t* a, uint64_t b,
                                      bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ELA_ACC_LIST
      ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n"
      "}\n"
      : ELA_ACC(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(kTransposeB ? 1 : 0));
}

/// The A fragment of step s of rows 16 warp .. of a tile.
__device__ inline void LoadFragment(uint32_t (&a)[4], uint32_t tile, int warp, int s) {
  const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  const int row = 16 * warp + matrix % 2 * 8 + lane % 8;
  const uint32_t at = tile + static_cast<uint32_t>(ChunkOffset(row, 2 * s + matrix / 2));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(at)
               : "memory");
}

__device__ inline void StoreShared(uint32_t at, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}

__device__ inline uint32_t LoadShared(uint32_t at) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}

/// An accumulator [64][64], rounded to bf16, into a panel. `rows` of this thread: 16 warp + lane/4.
__device__ inline void StorePanel(uint32_t panel, int row, const float (&d)[32]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint32_t at = panel + static_cast<uint32_t>(row * 128 + ((j ^ (row & 7)) << 4) + 4 * t);
    StoreShared(at, Pack(d[4 * j], d[4 * j + 1]));
    StoreShared(at + 8 * 128, Pack(d[4 * j + 2], d[4 * j + 3]));
  }
}

#endif  // ELA_HOPPER_CODE
#endif  // __CUDACC__

}  // namespace ela::kernels::cuda::hopper
