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
inline constexpr int kNarrowBytes = 8 * 128;  // of a tile of 8 rows

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

/// The larger elements; of a number and NaN the number.
__device__ inline uint32_t Max2(uint32_t a, uint32_t b) {
  asm("max.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / x to 1 ulp; 0 where x is beyond 2^126.
__device__ inline float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
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
/// A box of `map` from shared memory to columns from x and rows from y.
__device__ inline void StoreBox(const CUtensorMap* map, uint32_t from, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(from), "r"(x), "r"(y)
      : "memory");
}
/// A float, or 0; done where ArriveOnCopies says.
__device__ inline void CopyFloat(float* to, const float* from, bool live) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(to)),
               "l"(__cvta_generic_to_global(from)), "r"(live ? 4 : 0)
               : "memory");
}
/// One of the barrier's arrivals, once this thread's copies of floats are done.
__device__ inline void ArriveOnCopies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(SharedAddress(barrier))
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

/// Of several warpgroups.
template <int kWarpgroups>
__device__ void GroupBarrier(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(128 * kWarpgroups) : "memory");
}

/// The same, and whether `p` holds for any thread.
template <int kWarpgroups>
__device__ inline bool GroupAny(int id, bool p) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred in, out;\n"
      "setp.ne.b32 in, %2, 0;\n"
      "bar.red.or.pred out, %1, %3, in;\n"
      "selp.b32 %0, 1, 0, out;\n"
      "}\n"
      : "=r"(any)
      : "r"(id), "r"(static_cast<int>(p)), "n"(128 * kWarpgroups)
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

/// Operand in shared memory, at a byte address: 8-row groups are 1024 bytes apart either way. Only
/// the lower half of its descriptor: the upper one is the same for all.
__device__ inline uint32_t Operand(uint32_t address) {
  return (address >> 4) | uint32_t{kPanelBytes >> 4} << 16;
}
/// Step s of 16 along the summed dimension.
__device__ inline uint32_t KMajor(uint32_t tile, int s) {
  return Operand(tile) + static_cast<uint32_t>(s / 4 * (kPanelBytes / 16) + s % 4 * (32 / 16));
}
__device__ inline uint32_t MnMajor(uint32_t panel, int s) {
  return Operand(panel) + static_cast<uint32_t>(s * (2048 / 16));
}
/// The same step of a B of 8 rows: tiles of [8][64], 1024 bytes each.
__device__ inline uint32_t Narrow(uint32_t tile, int s) {
  return Operand(tile) + static_cast<uint32_t>(s / 4 * (kNarrowBytes / 16) + s % 4 * (32 / 16));
}

// Upper half: a swizzle of 128 bytes, groups 1024 bytes apart.
#define ELA_DESCRIPTOR(to, lower) "mov.b64 " to ", {" lower ", 0x40000040};\n"

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
__device__ inline void WgmmaShared(float (&d)[32], uint32_t a, uint32_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 p, %34, 0;\n" ELA_DESCRIPTOR("a", "%32") ELA_DESCRIPTOR(
          "b", "%33") "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ELA_ACC_LIST
                      ", a, b, p, 1, 1, %35, %36;\n"
                      "}\n"
      : ELA_ACC(d)
      : "r"(a), "r"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposeA ? 1 : 0),
        "n"(kTransposeB ? 1 : 0));
}

/// The same with A in registers.
template <bool kTransposeB>
__device__ inline void WgmmaRegisters(float (&d)[32], const uint32_t* a, uint32_t b,
                                      bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 p, %37, 0;\n" ELA_DESCRIPTOR(
          "b", "%36") "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ELA_ACC_LIST
                      ", {%32, %33, %34, %35}, b, p, 1, 1, %38;\n"
                      "}\n"
      : ELA_ACC(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(accumulate)),
        "n"(kTransposeB ? 1 : 0));
}

/// d [64][8] = (accumulate ? d : 0) + A B, one step, A in registers: thread t of a quad holds
/// columns 2 t and 2 t + 1 of rows lane / 4 and 8 more. B is K-major.
__device__ inline void WgmmaNarrow(float (&d)[4], const uint32_t* a, uint32_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 p, %9, 0;\n" ELA_DESCRIPTOR("b", "%8")
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, b, p, 1, 1, 0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(accumulate)));
}
/// Where this lane's part of A fragments of rows 16 warp .. of a tile begins: step s is at
/// FragmentStep(it, s).
__device__ inline uint32_t FragmentAddress(uint32_t tile, int warp) {
  const unsigned lane = threadIdx.x % 32u;
  const unsigned row = 16u * static_cast<unsigned>(warp) + lane % 16u;
  return tile + row * 128u + (((row & 7u) ^ (lane / 16u)) << 4);
}
__device__ inline uint32_t FragmentStep(uint32_t first, int s) {
  return (first ^ static_cast<uint32_t>(s % 4 * 32)) + static_cast<uint32_t>(s / 4 * kPanelBytes);
}

/// The A fragment of step s of rows 16 warp .. of a tile.
__device__ inline void LoadFragment(uint32_t (&a)[4], uint32_t tile, int warp, int s) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(FragmentStep(FragmentAddress(tile, warp), s))
               : "memory");
}
__device__ inline void StoreFragment(uint32_t tile, int warp, int s, const uint32_t (&a)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   FragmentStep(FragmentAddress(tile, warp), s)),
               "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
               : "memory");
}

/// Where this lane's part of fragments of a panel's transpose begins, for its columns 16 warp ..;
/// step s, of rows 16 s .., is 2048 s bytes further.
__device__ inline uint32_t TransposedAddress(uint32_t panel, int warp) {
  const unsigned lane = threadIdx.x % 32u;
  const unsigned row = lane / 16u * 8u + lane % 8u;
  const unsigned chunk = 2u * static_cast<unsigned>(warp) + lane / 8u % 2u;
  return panel + row * 128u + ((chunk ^ (row & 7u)) << 4);
}
/// The same, transposed: rows of the operand A are columns 16 warp .. of a panel, and step s sums
/// over rows 16 s ...
__device__ inline void LoadTransposed(uint32_t (&a)[4], uint32_t panel, int warp, int s) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(TransposedAddress(panel, warp) + static_cast<uint32_t>(2048 * s))
               : "memory");
}
__device__ inline void StoreTransposed(uint32_t panel, int warp, int s, const uint32_t (&a)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   TransposedAddress(panel, warp) + static_cast<uint32_t>(2048 * s)),
               "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
               : "memory");
}

/// A warp's matrix [8][8], two elements of a row a lane (row lane / 4), transposed.
__device__ inline uint32_t Transpose(uint32_t pair) {
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pair));
  return pair;
}

__device__ inline void StoreShared(uint32_t at, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}

__device__ inline uint32_t LoadShared(uint32_t at) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}

__device__ inline uint4 LoadShared16(uint32_t at) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at)
               : "memory");
  return x;
}

/// Step s of an accumulator [64][64] as an A fragment, rounded to bf16.
__device__ inline void PackFragment(const float (&d)[32], int s, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = Pack(d[8 * s + 2 * i], d[8 * s + 2 * i + 1]);
}

/// An accumulator [64][64], rounded to bf16, into a panel.
__device__ inline void StorePanel(uint32_t panel, int warp, const float (&d)[32]) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    uint32_t a[4];
    PackFragment(d, s, a);
    StoreFragment(panel, warp, s, a);
  }
}

#endif  // ELA_HOPPER_CODE
#endif  // __CUDACC__

}  // namespace ela::kernels::cuda::hopper
