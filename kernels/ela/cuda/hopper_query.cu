// dq, hadamard_exp, on Hopper: the forward scan of model.md 1.2.
//
// Per chunk, reading q, k, v, dy once and writing dq and -delta (10 D + 8 bytes a row): with the
// state S and normaliser C before the chunk, keys' weights W at the chunk's gauge R and
// e = e^(q + R - lse),
//   g = e (mask(dy v^T) W + dy S^T),   h = e (mask(1) W + C),
//   delta = sum_d g / sum_d h,         dq = g - delta h,
// where sum_d h is 1 but for rounding. The scorer computes mask(dy v^T), and e in bf16; each
// carrier 64 features of dq, and keeps those rows of S. y is not read.
#include "kernels/ela/cuda/hopper_gradient.cuh"
#include "kernels/ela/cuda/hopper_roles.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

// Streams: v, dy, q. Score: the masked product.
template <int kPanels>
using QuerySize = PipeSize<kPanels, 3, 1>;

#ifdef ELA_HOPPER_CODE

template <int kPanels>
using QueryPipe = Pipe<kPanels, 3, 1>;
template <int kPanels>
using QueryLoader = Loader<false, kPanels, 3, 1>;

template <int kPanels>
struct QueryScorer {
  const BackwardArgs& p;
  const QueryPipe<kPanels>& mem;
  int head;
  int chunk = -1;
  Place at = Place();
  TriangleMask<false> lower = TriangleMask<false>(at);

  __device__ void operator()(int step, const Step& now) {
    if (now.fresh) mem.WaitStreams(++chunk);
    mem.WaitTile(step, now);
    const uint32_t values = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t queries = SharedAddress(mem.Stream(chunk, 2));
    {
      const float* lse = mem.RowsOf(chunk, 0);
      const float decay = p.walk.plan.log_decay[head] * kLog2E;
      float exponent[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = at.row + 8 * i;
        exponent[i] = fmaf(-kLog2E, lse[row], decay * now.window.Step<false>(row));
      }
      uint32_t e[4 * kPanels][4];
      WeighReaders<kPanels>(queries, mem.GaugesOf(step).r, exponent, at.warp, e);
      StoreFragments<kPanels>(queries, at, now.window, e);
    }
    float score[32];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaShared<false, false>(score, KMajor(dy, k), KMajor(values, k), k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    if (step > 1) mem.WaitDone(step - 2);  // its scores are read
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t a[4];
      PackFragment(score, k, a);
      lower(k, a);
      StoreFragment(mem.Scores(step), at.warp, k, a);
    }
    FenceProxy();
    ArriveWarp(mem.Scored(step));
  }
};

/// g = dy S^T + scores W for 64 features.
template <int kPanels>
__device__ void StartGradient(uint32_t dy, uint32_t copy, uint32_t scores, uint32_t keys,
                              float (&g)[32]) {
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    WgmmaShared<false, false>(g, KMajor(dy, k), KMajor(copy, k), k > 0);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    WgmmaShared<false, true>(g, KMajor(scores, k), MnMajor(keys, k), true);
  }
  WgmmaCommit();
}

template <int kPanels>
__device__ void Carry(const BackwardArgs& p, const QueryPipe<kPanels>& mem, const DeviceItem& item,
                      int head, int carrier, const QueryLoader<kPanels>& loader) {
  const Place at;
  const bool loads = !mem.kScorerLoads && carrier == 0 && at.warp == 0;
  if (loads) loader.Start(item);
  const uint32_t copy = mem.StateCopy(carrier);
  const TriangleMask<false> lower(at);
  uint32_t ones[4][4];  // on and below the diagonal
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) ones[k][i] = 0x3f803f80u;
    lower(k, ones[k]);
  }
  float s[kPanels][32], g[32], h[32];  // s: features 64 carrier .., columns 64 i ..
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) break;
    if (now.first) {
      const float* start = StartOf(p.walk, item, now.span, head, false);
      LoadFeatures<kPanels>(start, p.walk.layout, 64 * carrier, at, s);
    }
    if (now.fresh) ++chunk;
    if (loads && now.last) {
      loader.AfterPublished(chunk);
      loader.AfterDone(step, chunk);
    }
    if (now.fresh) mem.WaitStreams(chunk);
    const Gauges gauges = mem.GaugesOf(step);
    const uint32_t keys =
        SharedAddress(mem.Weights(step)) + static_cast<uint32_t>(carrier * kPanelBytes);
    const uint32_t values = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t scores = mem.Scores(step);
    WgmmaFence();
    UpdatePanel(keys, values, g);
    WgmmaCommit();
    WarpgroupBarrier(CarrierBarrier(carrier));  // every warp has read the copy
    ShrinkAndCopy<kPanels>(mem.AnyRaised(step) ? gauges.shrink + 64 * carrier : nullptr, copy,
                           kPanelBytes, at, s);
    AddUpdates<kPanels>(keys, 0, values, kPanelBytes, g, s);
    WarpgroupBarrier(CarrierBarrier(carrier));
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WgmmaRegisters<true>(h, ones[k], MnMajor(keys, k), k > 0);
    }
    WgmmaCommit();
    mem.WaitScored(step);
    StartGradient<kPanels>(dy, copy, scores, keys, g);
    WgmmaWait<0>();
    ArriveWarp(mem.Used(step));
    const uint32_t readers =
        SharedAddress(mem.Stream(chunk, 2)) + static_cast<uint32_t>(carrier * kPanelBytes);
    FinishQuery<kPanels>(
        p, at, head, now.row, now.window, carrier, gauges.norm, mem.Rows(step),
        [&](int k, uint32_t(&e)[4]) { LoadFragment(e, readers, at.warp, k); }, g, h);
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.dq) + now.row * p.dq_stride +
                         head * 64 * kPanels + 64 * carrier,
                     p.dq_stride, g);
    ArriveWarp(mem.Done(step));
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kFlat>
__global__ void __launch_bounds__(QuerySize<kPanels>::kThreads, 3 - kPanels)
    QueryScan(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  constexpr int kLaunched = 128;  // registers a thread
  const QueryPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start(QueryLoader<kPanels>::kKeyArrivals);
  const CUtensorMap* const streams[3] = {&p.v, &p.dy, &p.q};
  const QueryLoader<kPanels> loader = {mem, p.walk, head, &p.k, streams, p.lse};
  if (role == 0) {
    SetRegisters<kPanels == 1 ? 96 : 88, kLaunched>();
    RunWeigher<false, kFlat>(mem, p.walk, item, head, QueryScorer<kPanels>{p, mem, head});
  } else if (kPanels > 1 && role == 1) {
    SetRegisters<72, kLaunched>();
    RunScorer(mem, item, loader, QueryScorer<kPanels>{p, mem, head});
  } else {
    SetRegisters<kPanels == 1 ? 160 : 176, kLaunched>();
    Carry<kPanels>(p, mem, item, head, role - kPanels, loader);
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const BackwardArgs& p) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  using Size = QuerySize<kPanels>;
  Launch(p.walk.decays ? QueryScan<kPanels, false> : QueryScan<kPanels, true>, grid, Size::kThreads,
         Size::kBytes, stream, p);
}

}  // namespace

void LaunchQueryGradient(cudaStream_t stream, int panels, const BackwardArgs& args, bool causal) {
  if (!causal) {
    LaunchQueryRead(stream, panels, args);
  } else if (panels == 1) {
    LaunchForPanels<1>(stream, args);
  } else {
    LaunchForPanels<2>(stream, args);
  }
}

}  // namespace ela::kernels::cuda::hopper
