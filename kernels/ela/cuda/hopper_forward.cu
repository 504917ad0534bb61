// Forward pass, hadamard_exp, on Hopper.
//
// One block walks an item of one head, reading q, k, v once and writing y once (8 D + 4 bytes a
// row). Per chunk: weights of the keys at the chunk's gauge (weigher); weights of the queries, the
// masked product within the chunk, the normaliser, lse (scorer); each carrier, for its 64 value
// columns, copies the state, updates it, in a fresh accumulator that is added to it in fp32, and
// then adds the scorer's product to the read-out of the copy.
#include "kernels/ela/cuda/hopper_launch.h"
#include "kernels/ela/cuda/hopper_roles.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

#ifdef ELA_HOPPER_CODE

template <int kPanels>
using ForwardPipe = Pipe<kPanels, 2, 3, 1>;  // streams: q, v
template <int kPanels>
using ForwardLoader = Loader<false, false, kPanels, 2, 3, 1>;

template <int kPanels>
struct ForwardScorer {
  const ForwardArgs& p;
  const ForwardPipe<kPanels>& mem;
  int head;
  int chunk = -1;
  float guess = 0.0f;  // of the queries' gauge
  Place at = Place();
  TriangleMask<false> lower = TriangleMask<false>(at);

  __device__ void operator()(int step, const Step& now) {
    if (now.fresh) mem.WaitStreams(++chunk);
    mem.WaitTile(step, now);
    const uint32_t tile = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t keys = SharedAddress(mem.Weights(step));
    const Gauges gauges = mem.GaugesOf(step);
    const uint32_t norms = SharedAddress(gauges.halves), ones = SharedAddress(mem.Ones());
    Queries<kPanels> queries;
    queries.Weigh(tile, gauges.r, at.warp, &guess);
    float score[32], den[4];
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
    StoreFragments<kPanels>(tile, at, now.window, queries.a);
    WgmmaWait<0>();
    uint32_t a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      PackFragment(score, k, a[k]);
      lower(k, a[k]);
    }
    if (step > 1) mem.WaitDone(step - 2);  // its scores are read
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaNarrow(den, a[k], Narrow(ones, k), true);
    WgmmaCommit();
#pragma unroll
    for (int k = 0; k < 4; ++k) StoreFragment(mem.Scores(step), at.warp, k, a[k]);
    FenceProxy();
    WgmmaWait<0>();
    FinishNormaliser(step, now, queries.gauge, den);
    Arrive(mem.Scored(step));
  }

  /// Writes lse, and 1 / normaliser for the carriers; den: its parts, in a quad's first thread.
  __device__ void FinishNormaliser(int step, const Step& now, const float (&gauge)[2],
                                   const float (&den)[4]) const {
    if (at.t != 0) return;
    float* inverse = mem.Rows(step);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.row + 8 * i;
      const float sum = den[2 * i] + den[2 * i + 1];
      inverse[row] = Reciprocal(sum);
      if (!now.window.Holds(row)) continue;
      p.lse[(now.row + row) * p.walk.heads + head] =
          (gauge[i] + __log2f(sum)) * kLn2 +
          p.walk.plan.log_decay[head] * now.window.Step<false>(row);
    }
  }
};

template <int kPanels>
__device__ void Carry(const ForwardArgs& p, const ForwardPipe<kPanels>& mem, const DeviceItem& item,
                      int head, int carrier, const ForwardLoader<kPanels>& loader) {
  const Place at;
  const bool loads = !mem.kScorerLoads && carrier == 0 && at.warp == 0;
  if (loads) loader.Start(item);
  const uint32_t copy = mem.StateCopy(carrier);
  float s[kPanels][32], o[32];
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) break;
    if (now.first) {
      const float* start = StartOf(p.walk, item, now.span, head, false);
      LoadState<kPanels>(start, p.walk.layout, 64 * carrier, at, s);
    }
    if (now.fresh) ++chunk;
    if (loads && now.last) loader.AfterPublished(step, chunk);
    if (now.fresh) mem.WaitStreams(chunk);
    const uint32_t keys = SharedAddress(mem.Weights(step));
    const uint32_t queries = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t values =
        SharedAddress(mem.Stream(chunk, 1)) + static_cast<uint32_t>(carrier * kPanelBytes);
    WgmmaFence();
    UpdatePanel(keys, values, o);
    WgmmaCommit();
    if (mem.AnyRaised(step)) ShrinkState<kPanels>(mem.GaugesOf(step), at, s);
    WarpgroupBarrier(CarrierBarrier(carrier));  // every warp has read the copy
#pragma unroll
    for (int i = 0; i < kPanels; ++i) StorePanel(copy + i * kPanelBytes, at.warp, s[i]);
    FenceProxy();
    AddUpdates<kPanels>(keys, kPanelBytes, values, 0, o, s);
    Arrive(mem.Used(step));
    WarpgroupBarrier(CarrierBarrier(carrier));
    mem.WaitScored(step);
    const float inverse[2] = {mem.Rows(step)[at.row], mem.Rows(step)[at.row + 8]};
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaShared<false, true>(o, KMajor(queries, k), MnMajor(copy, k), k > 0);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WgmmaShared<false, true>(o, KMajor(mem.Scores(step), k), MnMajor(values, k), true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    ScaleRows(inverse[0], inverse[1], o);
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.y) + now.row * p.y_stride + head * 64 * kPanels +
                         64 * carrier,
                     p.y_stride, o);
    Arrive(mem.Done(step));
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kFlat>
__global__ void __launch_bounds__(PipeSize<kPanels, 2, 3, 1>::kThreads, 3 - kPanels)
    ForwardScan(const __grid_constant__ ForwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  constexpr int kLaunched = 128;  // registers a thread
  const ForwardPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start(ForwardLoader<kPanels>::kKeyArrivals);
  const CUtensorMap* const streams[2] = {&p.q, &p.v};
  const ForwardLoader<kPanels> loader = {mem, p.walk, head, &p.k, streams};
  if (role == 0) {
    SetRegisters<kPanels == 1 ? 112 : 104, kLaunched>();
    RunWeigher<false, true, kFlat>(mem, p.walk, item, head, 0, true,
                                   ForwardScorer<kPanels>{p, mem, head});
  } else if (kPanels > 1 && role == 1) {
    SetRegisters<104, kLaunched>();
    RunScorer(mem, item, loader, ForwardScorer<kPanels>{p, mem, head});
  } else {
    SetRegisters<kPanels == 1 ? 144 : 152, kLaunched>();
    Carry<kPanels>(p, mem, item, head, role - kPanels, loader);
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const ForwardArgs& p, bool causal) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  if (causal) {
    using Size = PipeSize<kPanels, 2, 3, 1>;
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
