// Forward pass, hadamard_exp, on Hopper.
//
// One block walks an item of one head, reading q, k, v once and writing y once (8 D + 4 bytes a
// row), in steps of a chunk or, where keys grow too much within it, of a window of it.
//
//   keepers  kPanels warpgroups, each of 64 features: weigh their keys in registers, publish the
//            weights and a copy of the state before the step, update the state, in a fresh
//            accumulator that is added to it in fp32
//   readers  kPanels warpgroups that take chunks in turn: weigh the queries in registers, read the
//            copy out, add the masked product within the chunk, divide by the normaliser
//
// Readers also load the tiles: keepers set the pace, and a lane that loads holds its warpgroup up.
#include "kernels/ela/cuda/hopper_forward_pipe.cuh"
#include "kernels/ela/cuda/hopper_keep.cuh"
#include "kernels/ela/cuda/hopper_readout.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

#ifdef ELA_HOPPER_CODE

/// Of 64 features: the weights of a step, and a copy of the state before it.
template <int kPanels>
__device__ void Publish(const ForwardMemory<kPanels>& mem, int step, int panel, const Place& at,
                        const Features<kPanels>& own, const Keys& keys) {
  const auto own_rows = static_cast<uint32_t>(panel * kPanelBytes);
  keys.Store(mem.Weights(step) + own_rows, at.warp);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    StorePanel(mem.Copy(step) + static_cast<uint32_t>(i * mem.kTile) + own_rows, at.warp, own.s[i]);
  }
  if (at.t == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int feature = 64 * panel + at.row + 8 * i;
      mem.Gauge(step)[feature] = own.m[i];
      StoreHalves(mem.Halves(step), feature, own.c[i]);
    }
  }
  FenceProxy();
  ArriveWarp(mem.Published(step));
}

template <int kPanels, bool kFlat>
__device__ void Keep(const ForwardArgs& p, const ForwardMemory<kPanels>& mem,
                     const DeviceItem& item, int head, int panel) {
  const Place at;
  const float decay = kFlat ? 0.0f : p.walk.plan.log_decay[head] * kLog2E;
  Features<kPanels> own;
  int step = 0;
  for (int chunk = 0;; ++chunk) {
    mem.WaitKeys(chunk);
    const Chunk now = *mem.ChunkOf(chunk);
    if (now.row < 0) break;
    if (now.first) {
      own.Load(StartOf(p.walk, item, now.span, head, false), p.walk.layout, 64 * panel, at);
    }
    for (Window left{0, now.count}; left.begin < left.end; ++step) {
      Keys keys;
      float r[2], sum[2], u[32];
      const Window window =
          WeighStep<false, kFlat>(KeyRows{mem.Keys(chunk), left, decay, nullptr, nullptr}, panel,
                                  own, at, p.walk.slow_chunks, mem.SharedInt(), &keys, r, sum);
      const bool fresh = left.begin == 0;
      left.begin = window.end;
      mem.WaitRoom(step);
      const uint32_t values = SharedAddress(mem.Values(chunk));
      if (r[0] != own.m[0] || r[1] != own.m[1]) own.Rise(r);
      if (threadIdx.x == 0) {
        *mem.StepOf(step) = {now.row, window, false, fresh, left.begin == left.end};
      }
      Publish(mem, step, panel, at, own, keys);
      if (fresh) mem.WaitValues(chunk);
      own.StartUpdate(keys, values, u);
      own.template Pass<kFlat>(sum, decay, window);
      own.Add(keys, values, u);
    }
  }
  mem.WaitRoom(step);
  if (threadIdx.x == 0) mem.StepOf(step)->stop = true;
  ArriveWarp(mem.Published(step));
}

/// Zeros what of step s of a product within the chunk lies above the diagonal.
__device__ void KeepLower(const Place& at, int s, uint32_t (&a)[4]) {
  const int row = at.row - 16 * s - 2 * at.t;  // less the first column's
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int below = row + 8 * (i % 2) - 8 * (i / 2);
    a[i] &= below > 0 ? 0xffffffffu : below == 0 ? 0xffffu : 0u;
  }
}

/// Weights of a step's keys for its queries, with what its state adds to the normaliser in den.
template <int kPanels>
__device__ void Score(const ForwardMemory<kPanels>& mem, int step, const Place& at,
                      const Queries<kPanels>& queries, uint32_t (&weights)[4][4], float (&den)[4]) {
  const uint32_t keys = mem.Weights(step), norms = SharedAddress(mem.Halves(step));
  float score[32];
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    WgmmaRegisters<false>(score, queries.a[k], KMajor(keys, k), k > 0);
  }
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    WgmmaNarrow(den, queries.a[k], Narrow(norms, k), k > 0);
  }
  WgmmaCommit();
  WgmmaWait<0>();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    PackFragment(score, k, weights[k]);
    KeepLower(at, k, weights[k]);
  }
}

/// Reads a step's state and its own values out, and writes y and lse.
template <int kPanels>
__device__ void ReadOut(const ForwardArgs& p, const ForwardMemory<kPanels>& mem, int step,
                        const Step& now, int head, uint32_t values, const Place& at,
                        const Queries<kPanels>& queries, const uint32_t (&weights)[4][4],
                        float (&den)[4]) {
  float o[32], inverse[2];
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    const uint32_t copy = mem.Copy(step) + static_cast<uint32_t>(i * mem.kTile);
    WgmmaFence();
    if (i == 0) {
#pragma unroll
      for (int k = 0; k < 4; ++k) WgmmaNarrow(den, weights[k], Narrow(mem.Ones(), k), true);
    }
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<true>(o, queries.a[k], MnMajor(copy, k), k > 0);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WgmmaRegisters<true>(o, weights[k],
                           MnMajor(values + static_cast<uint32_t>(i * kPanelBytes), k), true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    if (i + 1 == kPanels) ArriveWarp(mem.Done(step));
    if (i == 0) {
      FinishNormaliser(p, at, head, now.row, now.window, p.walk.plan.log_decay[head], queries.gauge,
                       den, inverse);
    }
    ScaleRows(inverse[0], inverse[1], o);
    WriteAccumulator(
        at, now.window,
        static_cast<__nv_bfloat16*>(p.y) + now.row * p.y_stride + 64 * (kPanels * head + i),
        p.y_stride, o);
  }
}

template <int kPanels>
__device__ void Read(const ForwardArgs& p, const ForwardMemory<kPanels>& mem,
                     const DeviceItem& item, int head, int reader) {
  const Place at;
  const ForwardLoader<kPanels> loader = {p, mem, head, reader};
  // Each warp's first lane has a part in loading, so that none is held up for long.
  const int loads = threadIdx.x % 32u == 0 ? at.warp : -1;
  if (loads == 0) loader.Start(item);
  WarpgroupBarrier(kOthersBarrier + reader);
  float guess = 0.0f;  // of the queries' gauge
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) return;
    if (now.fresh) ++chunk;
    if (chunk % kPanels != reader) {
      ArriveWarp(mem.Done(step));
      continue;
    }
    // Keepers have the chunk's keys in registers, and have used all values before the chunk's.
    if (loads == 0 && now.last) loader.LoadKeys(chunk + 2);
    if (loads == 2 && now.fresh && chunk > 0) loader.LoadValues(chunk + 1);
    if (loads == 3 && now.last) loader.Find(chunk + 2 + kPanels);
    if (now.fresh) mem.WaitQueries(chunk);
    Queries<kPanels> queries;
    queries.Weigh(SharedAddress(mem.Queries(chunk)), mem.Gauge(step), at.warp, &guess);
    if (now.last) {
      WarpgroupBarrier(kOthersBarrier + reader);  // every warp has read the tile
      if (loads == 1) loader.LoadQueries(chunk + 2);
    }
    float den[4];
    uint32_t weights[4][4];
    Score(mem, step, at, queries, weights, den);
    if (now.fresh) mem.WaitValues(chunk);
    ReadOut(p, mem, step, now, head, SharedAddress(mem.Values(chunk)), at, queries, weights, den);
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kFlat>
__global__ void __launch_bounds__(ForwardSize<kPanels>::kThreads, 3 - kPanels)
    ForwardScan(const __grid_constant__ ForwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  constexpr int kLaunched = 128;  // registers a thread
  const ForwardMemory<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  mem.Start();
  if (role < kPanels) {
    if constexpr (kPanels > 1) SetRegisters<144, kLaunched>();
    Keep<kPanels, kFlat>(p, mem, p.walk.plan.items[blockIdx.x], head, role);
  } else {
    if constexpr (kPanels > 1) SetRegisters<112, kLaunched>();
    Read<kPanels>(p, mem, p.walk.plan.items[blockIdx.x], head, role - kPanels);
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const ForwardArgs& p, bool causal) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  if (causal) {
    using Size = ForwardSize<kPanels>;
    Launch(p.walk.decays ? ForwardScan<kPanels, false> : ForwardScan<kPanels, true>, grid,
           Size::kThreads, Size::kBytes, stream, p);
  } else {
    LaunchForwardRead(stream, kPanels, p);
  }
}

}  // namespace

void LaunchForward(cudaStream_t stream, int panels, const ForwardArgs& p, bool causal) {
  if (panels == 1) {
    LaunchForPanels<1>(stream, p, causal);
  } else {
    LaunchForPanels<2>(stream, p, causal);
  }
}

}  // namespace ela::kernels::cuda::hopper
