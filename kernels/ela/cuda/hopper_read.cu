// Bidirectional read-outs, hadamard_exp, on Hopper: each row of an item from the total of its
// chain.
//
// Gradients: each warpgroup computes 64 columns of the outputs.
#include "kernels/ela/cuda/hopper_readout.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

#ifdef ELA_HOPPER_CODE

/// Divides a chunk's rows by the normaliser; writes y, by way of a tile, and lse.
template <int kPanels>
__device__ void FinishForward(const ForwardArgs& p, const Place& at, int head, int64_t row0,
                              const Window& window, uint32_t tile, const float (&gauge)[2],
                              const float (&den)[4], float (&o)[kPanels][32]) {
  float inverse[2];
  FinishNormaliser(p, at, head, row0, window, 0.0f, gauge, den, inverse);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    ScaleRows(inverse[0], inverse[1], o[i]);
    const Output y = {&p.y_rows, p.y, p.y_stride, 64 * (kPanels * head + i),
                      static_cast<int>(row0)};
    y.Write(tile + static_cast<uint32_t>(i * kPanelBytes), at, window, o[i]);
  }
}

/// A total as operands: its copy, and the normaliser's halves.
template <int kPanels>
__device__ void CopyTotal(const ForwardArgs& p, const Memory<kPanels, kPanels>& mem,
                          const DeviceItem& item, int head, int group, const Place& at) {
  const float* total =
      p.walk.states +
      (static_cast<int64_t>(item.first_slot) * p.walk.heads + head) * p.walk.layout.size;
  const Gauges gauges = mem.BlockGauges();
  LoadGauges<kPanels>(total, p.walk.layout, gauges);
  float s[kPanels][32];
  LoadState<kPanels>(total, p.walk.layout, 64 * group, at, s);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    StorePanel(mem.StateCopy(group) + static_cast<uint32_t>(i * kPanelBytes), at.warp, s[i]);
  }
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kPanels * kNarrowBytes / 4; i += 128 * kPanels) {
    reinterpret_cast<uint32_t*>(mem.Halves())[i] = 0;
  }
  __syncthreads();
  for (int i = thread; i < 64 * kPanels; i += 128 * kPanels) {
    StoreHalves(mem.Halves(), i, gauges.norm[i]);
  }
  FenceProxy();
  __syncthreads();
}

/// -lse (base 2) of a thread's two rows; 0 outside the window.
__device__ inline void QueryExponents(const BackwardArgs& p, const Place& at, int head,
                                      int64_t row0, const Window& window, float (&exponent)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.row + 8 * i;
    exponent[i] = window.Holds(row) ? -kLog2E * p.lse[(row0 + row) * p.walk.heads + head] : 0.0f;
  }
}

/// What of a sum over 64 features each warpgroup has, over all of them; `sums`: [2 kPanels][64].
template <int kPanels>
__device__ void SumWarpgroups(const Place& at, float* sums, float (&delta)[2], float (&total)[2]) {
  if (at.t == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float2*>(sums + 2 * (at.warpgroup * kTileRows + at.row + 8 * i)) =
          make_float2(delta[i], total[i]);
    }
  }
  GroupBarrier<kPanels>(kKeepersBarrier);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2* at_row = reinterpret_cast<const float2*>(sums) + at.row + 8 * i;
    const float2 low = at_row[0], high = at_row[kTileRows];
    delta[i] = low.x + high.x, total[i] = low.y + high.y;
  }
}

/// g becomes dq = e (g - delta C) for this warpgroup's features; also stores -delta, the sum of e g
/// over that of e C, which is 1 but for the rounding of e.
template <int kPanels>
__device__ void FinishQuery(const BackwardArgs& p, const Place& at, int head, int64_t row0,
                            const Window& window, const float* norms, float* sums,
                            const uint32_t (&e)[4][4], float (&g)[32]) {
  const auto* const norm = reinterpret_cast<const float2*>(norms + 64 * at.warpgroup) + at.t;
  float delta[2] = {}, total[2] = {};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 c = norm[4 * j];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 weight = Unpack(e[j / 2][j % 2 * 2 + i]);
      const float* gi = g + 4 * j + 2 * i;
      delta[i] += gi[0] * weight.x + gi[1] * weight.y;
      total[i] += c.x * weight.x + c.y * weight.y;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) delta[i] = QuadSum(delta[i]), total[i] = QuadSum(total[i]);
  if constexpr (kPanels > 1) SumWarpgroups<kPanels>(at, sums, delta, total);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    delta[i] /= total[i];
    const int row = at.row + 8 * i;
    if (at.warpgroup == 0 && at.t == 0 && window.Holds(row)) {
      p.minus_delta[(row0 + row) * p.walk.heads + head] = -delta[i];
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 c = norm[4 * j];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 weight = Unpack(e[j / 2][j % 2 * 2 + i]);
      float* gi = g + 4 * j + 2 * i;
      gi[0] = weight.x * (gi[0] - delta[i] * c.x);
      gi[1] = weight.y * (gi[1] - delta[i] * c.y);
    }
  }
}

/// g = b (g + t) for this warpgroup's features.
template <int kPanels>
__device__ void FinishOwnKeys(const Place& at, const float* norm,
                              const uint32_t (&b)[4 * kPanels][4], float (&g)[32]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 t = *reinterpret_cast<const float2*>(norm + 64 * at.warpgroup + 8 * j + 2 * at.t);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t pair = b[j / 2][j % 2 * 2 + i];
      if constexpr (kPanels > 1) {
        if (at.warpgroup == 1) pair = b[4 + j / 2][j % 2 * 2 + i];
      }
      const float2 weight = Unpack(pair);
      float* gi = g + 4 * j + 2 * i;
      gi[0] = weight.x * (gi[0] + t.x);
      gi[1] = weight.y * (gi[1] + t.y);
    }
  }
}

/// The part of an item, one segment of a span, that this block of gridDim.z reads: whole chunks.
__device__ DeviceItem OwnPart(DeviceItem item) {
  const int64_t chunks = (item.end - item.begin + kTileRows - 1) / kTileRows;
  const int64_t first = chunks * blockIdx.z / gridDim.z;
  const int64_t last = chunks * (blockIdx.z + 1) / gridDim.z;
  item.end = min(item.end, item.begin + last * kTileRows);
  item.begin += first * kTileRows;
  return item;
}

#endif  // ELA_HOPPER_CODE

/// y and lse: reads q (4 D + 4 bytes a row). Warpgroups take chunks in turn, each through two tiles
/// of its own, in which queries come and rows of y go.
template <int kPanels>
__global__ void __launch_bounds__(128 * kPanels, kReadBlocks / kPanels)
    ForwardRead(const __grid_constant__ ForwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  const Memory<kPanels, kPanels> mem(memory);
  const Place at;
  const int head = static_cast<int>(blockIdx.y), group = Role();
  const DeviceItem item = OwnPart(p.walk.plan.items[blockIdx.x]);
  mem.Start();
  const auto row_of = [&](int n) { return item.begin + kTileRows * (group + n * kPanels); };
  const auto load = [&](int n) {
    if (threadIdx.x % 128u != 0 || row_of(n) >= item.end) return;
    mem.LoadTile(&p.q, mem.Barrier(2 * group + n % 2), n % 2, group, head, row_of(n));
  };
  load(0);
  load(1);
  const uint32_t copy = mem.StateCopy(0), norms = SharedAddress(mem.Halves());
  const Gauges gauges = mem.BlockGauges();
  CopyTotal<kPanels>(p, mem, item, head, group, at);
  float guess = 0.0f;
  for (int n = 0; row_of(n) < item.end; ++n) {
    WaitBarrier(mem.Barrier(2 * group + n % 2), n / 2 % 2);
    const uint32_t tile = SharedAddress(mem.Tile(n % 2, group));
    Queries<kPanels> queries;
    queries.Weigh(tile, gauges.r, at.warp, &guess);
    if (n > 0) {
      WaitStoresRead<0>();
      WarpgroupBarrier(kOthersBarrier + group);  // the tile before has left by every warp
      load(n + 1);
    }
    float o[kPanels][32], den[4];
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
#pragma unroll
      for (int k = 0; k < 4 * kPanels; ++k) {
        WgmmaRegisters<true>(o[i], queries.a[k],
                             MnMajor(copy + static_cast<uint32_t>(i * mem.kTile), k), k > 0);
      }
    }
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaNarrow(den, queries.a[k], Narrow(norms, k), k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    const auto count = static_cast<int>(min(item.end - row_of(n), int64_t{kTileRows}));
    FinishForward<kPanels>(p, at, head, row_of(n), {0, count}, tile, queries.gauge, den, o);
  }
  WaitStoresRead<0>();
#endif
}

/// dq and -delta: reads q, dy, writes dq (6 D + 8 bytes a row).
template <int kPanels>
__global__ void __launch_bounds__(128 * kPanels, 3 - kPanels)
    QueryRead(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  const Memory<kPanels, 2> mem(memory);
  const Place at;
  const int head = static_cast<int>(blockIdx.y);
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  const CUtensorMap* const maps[2] = {&p.q, &p.dy};
  mem.Start();
  Walk next(p.walk.plan, item, false);
  bool more = next.Next<false>();
  if (more && threadIdx.x == 0) mem.Load(0, maps, head, next.row);
  const uint32_t copy = mem.StateCopy(at.warpgroup);
  const Gauges gauges = mem.BlockGauges();
  const float* total =
      p.walk.states +
      (static_cast<int64_t>(item.first_slot) * p.walk.heads + head) * p.walk.layout.size;
  LoadGauges<kPanels>(total, p.walk.layout, gauges);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    float s[32];
    LoadStateTile(total, p.walk.layout, 64 * at.warpgroup, 64 * i, at.warp, s);
    StorePanel(copy + i * kPanelBytes, at.warp, s);
  }
  FenceProxy();
  for (int chunk = 0; more; ++chunk) {
    const Walk now = next;
    const int stage = chunk % 2;
    const Window window{0, now.count};
    more = next.Next<false>();
    mem.Wait(chunk);
    __syncthreads();
    if (more && threadIdx.x == 0) mem.Load(1 - stage, maps, head, next.row);
    float g[32];
    const uint32_t dy = SharedAddress(mem.Tile(stage, 1));
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaShared<false, false>(g, KMajor(dy, k), KMajor(copy, k), k > 0);
    }
    WgmmaCommit();
    float exponent[2];
    QueryExponents(p, at, head, now.row, window, exponent);
    uint32_t e[4][4];
    const auto own = static_cast<uint32_t>(at.warpgroup * kPanelBytes);
    WeighReaders<1>(SharedAddress(mem.Tile(stage, 0)) + own, gauges.r + 64 * at.warpgroup, exponent,
                    at.warp, e);
    WgmmaWait<0>();
    FinishQuery<kPanels>(p, at, head, now.row, window, gauges.norm, mem.RowValues(0), e, g);
    WriteAccumulator(at, window,
                     static_cast<__nv_bfloat16*>(p.dq) + now.row * p.dq_stride +
                         head * 64 * kPanels + 64 * at.warpgroup,
                     p.dq_stride, g);
  }
#endif
}

/// dk and dv: reads k, v, writes both (8 D bytes a row).
template <int kPanels>
__global__ void __launch_bounds__(128 * kPanels, 3 - kPanels)
    KeyRead(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  const Memory<kPanels, 2> mem(memory);
  constexpr int kTile = Memory<kPanels, 2>::kTile;
  const Place at;
  const int head = static_cast<int>(blockIdx.y);
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  const CUtensorMap* const maps[2] = {&p.k, &p.v};
  mem.Start();
  Walk next(p.walk.plan, item, false);
  bool more = next.Next<false>();
  if (more && threadIdx.x == 0) mem.Load(0, maps, head, next.row);
  const uint32_t copy = mem.StateCopy(0);
  const uint32_t own_rows = static_cast<uint32_t>(at.warpgroup * kPanelBytes);
  const Gauges gauges = mem.BlockGauges();
  const float* total =
      p.walk.states +
      (static_cast<int64_t>(item.first_slot) * p.walk.heads + head) * p.walk.layout.size;
  LoadGauges<kPanels>(total, p.walk.layout, gauges);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    float s[32];
    LoadStateTile(total, p.walk.layout, 64 * at.warpgroup, 64 * i, at.warp, s);
    StorePanel(copy + i * kTile + own_rows, at.warp, s);
  }
  FenceProxy();
  for (int chunk = 0; more; ++chunk) {
    const Walk now = next;
    const int stage = chunk % 2;
    const Window window{0, now.count};
    more = next.Next<false>();
    mem.Wait(chunk);
    __syncthreads();
    if (more && threadIdx.x == 0) mem.Load(1 - stage, maps, head, next.row);
    const uint32_t values = SharedAddress(mem.Tile(stage, 1));
    uint32_t b[4 * kPanels][4];
    const float exponent[2] = {0.0f, 0.0f};
    WeighReaders<kPanels>(SharedAddress(mem.Tile(stage, 0)), gauges.r, exponent, at.warp, b);
    float dk[32], dv[32];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaShared<false, false>(
          dk, KMajor(values, k),
          Operand(copy + own_rows) + static_cast<uint32_t>((k / 4 * kTile + k % 4 * 32) / 16),
          k > 0);
    }
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<true>(dv, b[k], MnMajor(copy + static_cast<uint32_t>(at.warpgroup * kTile), k),
                           k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    FinishOwnKeys<kPanels>(at, gauges.norm, b, dk);
    const int64_t column = head * 64 * kPanels + 64 * at.warpgroup;
    WriteAccumulator(at, window, static_cast<__nv_bfloat16*>(p.dk) + now.row * p.dk_stride + column,
                     p.dk_stride, dk);
    WriteAccumulator(at, window, static_cast<__nv_bfloat16*>(p.dv) + now.row * p.dv_stride + column,
                     p.dv_stride, dv);
  }
#endif
}

template <int kPanels, int kTiles, class Args>
void LaunchRead(cudaStream_t stream, void (*kernel)(Args), const Args& p, int parts = 1) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items), static_cast<unsigned>(p.walk.heads),
                  static_cast<unsigned>(parts));
  Launch(kernel, grid, 128 * kPanels, MemorySize<kPanels, kTiles>::kBytes, stream, p);
}

}  // namespace

void LaunchForwardRead(cudaStream_t stream, int panels, const ForwardArgs& p) {
  if (panels == 1) {
    LaunchRead<1, 1>(stream, ForwardRead<1>, p, p.read_parts);
  } else {
    LaunchRead<2, 2>(stream, ForwardRead<2>, p, p.read_parts);
  }
}

void LaunchQueryRead(cudaStream_t stream, int panels, const BackwardArgs& p) {
  if (panels == 1) {
    LaunchRead<1, 2>(stream, QueryRead<1>, p);
  } else {
    LaunchRead<2, 2>(stream, QueryRead<2>, p);
  }
}

void LaunchKeyRead(cudaStream_t stream, int panels, const BackwardArgs& p) {
  if (panels == 1) {
    LaunchRead<1, 2>(stream, KeyRead<1>, p);
  } else {
    LaunchRead<2, 2>(stream, KeyRead<2>, p);
  }
}

}  // namespace ela::kernels::cuda::hopper
