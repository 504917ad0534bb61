// dk and dv, hadamard_exp, on Hopper: the reverse scan of model.md 1.2.
//
// Per chunk, from the last to the first, reading q, k, v, dy once and writing dk, dv (12 D + 8
// bytes a row): with the state T and its column t (of -delta) after the chunk, weights X of the
// queries q - lse at the chunk's gauge N, and b = e^(k + N),
//   dk = b (mask(v dy^T - delta) X + v T^T + t),   dv = mask(b X^T) dy + b T.
// The scorer computes b and both masked products; each carrier 64 features of dk and 64 columns of
// dv, and keeps those rows of T.
#include "kernels/ela/cuda/hopper_gradient.cuh"
#include "kernels/ela/cuda/hopper_roles.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

// Streams: k, v, dy. Scores: mask(v dy^T - delta), mask(b X^T).
template <int kPanels>
using KeySize = PipeSize<kPanels, 3, 2>;

#ifdef ELA_HOPPER_CODE

template <int kPanels>
using KeyPipe = Pipe<kPanels, 3, 2>;
template <int kPanels>
using KeyLoader = Loader<true, kPanels, 3, 2>;

/// Adds a number of its own to each column of an accumulator.
__device__ void AddToColumns(const Place& at, const float* columns, float (&d)[32]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 add = *reinterpret_cast<const float2*>(columns + 8 * j + 2 * at.t);
#pragma unroll
    for (int i = 0; i < 2; ++i) d[4 * j + 2 * i] += add.x, d[4 * j + 2 * i + 1] += add.y;
  }
}

template <int kPanels>
struct KeyScorer {
  const BackwardArgs& p;
  const KeyPipe<kPanels>& mem;
  int head;
  int chunk = -1;
  Place at = Place();
  TriangleMask<true> upper = TriangleMask<true>(at);

  __device__ void operator()(int step, const Step& now) {
    if (now.fresh) mem.WaitStreams(++chunk);
    mem.WaitTile(step, now);
    const uint32_t keys = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t values = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 2));
    const uint32_t x = SharedAddress(mem.Weights(step));
    const float decay = p.walk.plan.log_decay[head] * kLog2E;
    float score[32];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaShared<false, false>(score, KMajor(values, k), KMajor(dy, k), k > 0);
    }
    WgmmaCommit();
    const float exponent[2] = {decay * now.window.Step<true>(at.row),
                               decay * now.window.Step<true>(at.row + 8)};
    uint32_t b[4 * kPanels][4];
    WeighReaders<kPanels>(keys, mem.GaugesOf(step).r, exponent, at.warp, b);
    StoreFragments<kPanels>(keys, at, now.window, b);
    WgmmaWait<0>();
    AddToColumns(at, mem.RowsOf(chunk, 1), score);
    uint32_t products[4][4], a[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      PackFragment(score, k, products[k]);
      upper(k, products[k]);
    }
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<false>(score, b[k], KMajor(x, k), k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    if (step > 0) mem.WaitDone(step - 1);  // its scores are read
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      StoreFragment(mem.Scores(step), at.warp, k, products[k]);
      PackFragment(score, k, a);
      upper(k, a);
      StoreFragment(mem.Scores(step) + kPanelBytes, at.warp, k, a);
    }
    FenceProxy();
    ArriveWarp(mem.Scored(step));
  }
};

/// out = values T^T + scores x for 64 features; `copy` holds their rows of T, 64 columns a panel.
template <int kPanels>
__device__ void StartKeyGradient(uint32_t values, uint32_t copy, uint32_t scores, uint32_t x,
                                 float (&out)[32]) {
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    const int columns = k / 4 * kPanels * kPanelBytes + k % 4 * 32;
    WgmmaShared<false, false>(out, KMajor(values, k),
                              Operand(copy) + static_cast<uint32_t>(columns / 16), k > 0);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    WgmmaShared<false, true>(out, KMajor(scores, k), MnMajor(x, k), true);
  }
  WgmmaCommit();
}

/// out = readers T + scores dy for 64 columns of values.
template <int kPanels>
__device__ void StartValueGradient(uint32_t readers, uint32_t copy, uint32_t scores, uint32_t dy,
                                   float (&out)[32]) {
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    WgmmaShared<false, true>(out, KMajor(readers, k), MnMajor(copy, k), k > 0);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    WgmmaShared<false, true>(out, KMajor(scores, k), MnMajor(dy, k), true);
  }
  WgmmaCommit();
}

template <int kPanels>
__device__ void Carry(const BackwardArgs& p, const KeyPipe<kPanels>& mem, const DeviceItem& item,
                      int head, int carrier, const KeyLoader<kPanels>& loader) {
  constexpr int kTile = kPanels * kPanelBytes;
  const Place at;
  const bool loads = !mem.kScorerLoads && carrier == 0 && at.warp == 0;
  if (loads) loader.Start(item);
  const uint32_t copy = mem.StateCopy(0);
  const auto own = static_cast<uint32_t>(carrier * kPanelBytes);
  const int64_t own_column = head * 64 * kPanels + 64 * carrier;
  float s[kPanels][32], dk[32], dv[32];  // s: features 64 carrier .., columns 64 i ..
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) break;
    if (now.first) {
      const float* start = StartOf(p.walk, item, now.span, head, true);
      LoadFeatures<kPanels>(start, p.walk.layout, 64 * carrier, at, s);
    }
    if (now.fresh) ++chunk;
    if (loads && now.last) {
      loader.AfterPublished(chunk);
      loader.AfterDone(step, chunk);
    }
    if (now.fresh) mem.WaitStreams(chunk);
    const Gauges gauges = mem.GaugesOf(step);
    const uint32_t x = SharedAddress(mem.Weights(step)) + own;
    const uint32_t keys = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t values = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 2)), scores = mem.Scores(step);
    WgmmaFence();
    UpdatePanel(x, dy, dk);
    WgmmaCommit();
    // Columns 64 i .. of T lie at copy + i kTile, this carrier's rows of them at `own` there.
    GroupBarrier<kPanels>(kCarriersBarrier);  // everyone has read the copy
    ShrinkAndCopy<kPanels>(mem.AnyRaised(step) ? gauges.shrink + 64 * carrier : nullptr, copy + own,
                           kTile, at, s);
    AddUpdates<kPanels>(x, 0, dy, kPanelBytes, dk, s);
    GroupBarrier<kPanels>(kCarriersBarrier);
    mem.WaitScored(step);
    StartKeyGradient<kPanels>(values, copy + own, scores, x, dk);
    StartValueGradient<kPanels>(keys, copy + static_cast<uint32_t>(carrier * kTile),
                                scores + kPanelBytes, dy + own, dv);
    WgmmaWait<1>();
    ArriveWarp(mem.Used(step));
    FinishKeys(at, gauges.norm, keys, 64 * carrier, dk);
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.dk) + now.row * p.dk_stride + own_column,
                     p.dk_stride, dk);
    WgmmaWait<0>();
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.dv) + now.row * p.dv_stride + own_column,
                     p.dv_stride, dv);
    ArriveWarp(mem.Done(step));
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels>
__global__ void __launch_bounds__(KeySize<kPanels>::kThreads, 3 - kPanels)
    KeyScan(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  constexpr int kLaunched = 128;  // registers a thread
  const KeyPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start(KeyLoader<kPanels>::kKeyArrivals);
  const CUtensorMap* const streams[3] = {&p.k, &p.v, &p.dy};
  const KeyLoader<kPanels> loader = {mem, p.walk, head, &p.q, streams, p.lse, p.minus_delta};
  if (role == 0) {
    SetRegisters<kPanels == 1 ? 112 : 96, kLaunched>();
    RunWeigher<true, false>(mem, p.walk, item, head, KeyScorer<kPanels>{p, mem, head});
  } else if (kPanels > 1 && role == 1) {
    SetRegisters<96, kLaunched>();
    RunScorer(mem, item, loader, KeyScorer<kPanels>{p, mem, head});
  } else {
    SetRegisters<kPanels == 1 ? 144 : 160, kLaunched>();
    Carry<kPanels>(p, mem, item, head, role - kPanels, loader);
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const BackwardArgs& p) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  using Size = KeySize<kPanels>;
  Launch(KeyScan<kPanels>, grid, Size::kThreads, Size::kBytes, stream, p);
}

}  // namespace

void LaunchKeyGradients(cudaStream_t stream, int panels, const BackwardArgs& args, bool causal) {
  if (!causal) {
    LaunchKeyRead(stream, panels, args);
  } else if (panels == 1) {
    LaunchForPanels<1>(stream, args);
  } else {
    LaunchForPanels<2>(stream, args);
  }
}

}  // namespace ela::kernels::cuda::hopper
