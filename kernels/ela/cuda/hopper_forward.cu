// Forward pass, hadamard_exp, on Hopper.
//
// One block walks an item of one head, reading q, k, v once and writing y once (8 D + 4 bytes a
// row). Per chunk: weights of the keys at the chunk's gauge (weigher); weights of the queries, the
// masked product within the chunk, the normaliser, lse (scorer); then each carrier, for its 64
// value columns, adds that product to the read-out of the state so far and updates the state, in a
// fresh accumulator that is added to it in fp32.
#include "kernels/ela/cuda/hopper_launch.h"
#include "kernels/ela/cuda/hopper_pipe.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

#ifdef ELA_HOPPER_CODE

/// Sums the quads' parts of the normaliser; writes lse, and 1 / normaliser for the carriers.
__device__ void FinishNormaliser(const ForwardArgs& p, const Place& at, int head, const Step& step,
                                 const float (&top)[2], const float (&quad_den)[2],
                                 float* inverse) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float den = quad_den[i] + __shfl_xor_sync(0xffffffffu, quad_den[i], 1);
    den += __shfl_xor_sync(0xffffffffu, den, 2);
    const int row = at.row + 8 * i;
    if (at.t != 0) continue;
    inverse[row] = 1.0f / den;
    if (!step.window.Holds(row)) continue;
    p.lse[(step.row + row) * p.walk.heads + head] =
        (top[i] + __log2f(den)) * kLn2 + p.walk.plan.log_decay[head] * step.window.Step<false>(row);
  }
}

template <int kPanels>
using ForwardPipe = Pipe<kPanels, 2, 3, 1>;  // streams: q, v

template <int kPanels>
struct ForwardScorer {
  const ForwardArgs& p;
  const ForwardPipe<kPanels>& mem;
  int head;
  int chunk = -1;

  __device__ void operator()(int step, const Step& now) {
    const Place at;
    if (now.fresh) mem.WaitStreams(++chunk);
    mem.WaitTile(step, now);
    const uint32_t tile = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t keys = SharedAddress(mem.Weights(step));
    Queries<kPanels> queries;
    queries.Weigh(tile, mem.GaugesOf(step), at.warp);
    float score[32];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<false>(score, queries.a[k], KMajor(keys, k), k > 0);
    }
    WgmmaCommit();
    StoreFragments<kPanels>(tile, at, now.window, queries.a);
    WgmmaWait<0>();
    StoreLower(mem.Scores(step), at, score, queries.den);
    FinishNormaliser(p, at, head, now, queries.top, queries.den, mem.Rows(step, 0));
    FenceProxy();
    Arrive(mem.Scored(step));
  }
};

template <int kPanels>
__device__ void Carry(const ForwardArgs& p, const ForwardPipe<kPanels>& mem, const DeviceItem& item,
                      int head, int carrier) {
  const Place at;
  const uint32_t copy = mem.StateCopy(carrier);
  float s[kPanels][32], o[32], u[32];
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) break;
    if (now.first) {
      const float* start = StartOf(p.walk, item, now.span, head, false);
      LoadState<kPanels>(start, p.walk.layout, 64 * carrier, at, s);
    }
    if (now.fresh) mem.WaitStreams(++chunk);
    const uint32_t keys = SharedAddress(mem.Weights(step));
    const uint32_t queries = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t values =
        SharedAddress(mem.Stream(chunk, 1)) + static_cast<uint32_t>(carrier * kPanelBytes);
    WgmmaFence();
    UpdatePanel(keys, values, u);
    WgmmaCommit();
    ShrinkState<kPanels>(mem.GaugesOf(step), at, s);
    WarpgroupBarrier(CarrierBarrier(carrier));  // every warp has read the copy
#pragma unroll
    for (int i = 0; i < kPanels; ++i) StorePanel(copy + i * kPanelBytes, at.row, s[i]);
    FenceProxy();
    WarpgroupBarrier(CarrierBarrier(carrier));
    mem.WaitScored(step);
    const float inverse[2] = {mem.Rows(step, 0)[at.row], mem.Rows(step, 0)[at.row + 8]};
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
    WgmmaWait<1>();
    AddPanel(s[0], u);
    if constexpr (kPanels > 1) {
      WgmmaFence();
      UpdatePanel(keys + kPanelBytes, values, u);
      WgmmaCommit();
      WgmmaWait<1>();
    } else {
      WgmmaWait<0>();
    }
    ScaleRows(inverse[0], inverse[1], o);
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.y) + now.row * p.y_stride + head * 64 * kPanels +
                         64 * carrier,
                     p.y_stride, o);
    if constexpr (kPanels > 1) {
      WgmmaWait<0>();
      AddPanel(s[1], u);
    }
    Arrive(mem.Done(step));
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels>
__global__ void __launch_bounds__(PipeSize<kPanels, 2, 3, 1>::kThreads, 3 - kPanels)
    ForwardScan(const __grid_constant__ ForwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  constexpr int kLaunched = 128;  // registers a thread
  const ForwardPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = static_cast<int>(threadIdx.x) / 128;
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start();
  if (role == 0) {
    SetRegisters<kPanels == 1 ? 112 : 104, kLaunched>();
    const CUtensorMap* const streams[2] = {&p.q, &p.v};
    RunWeigher<false, true>(mem, p.walk, item, head, {&p.k, true, nullptr, nullptr}, streams,
                            ForwardScorer<kPanels>{p, mem, head});
  } else if (kPanels > 1 && role == 1) {
    SetRegisters<104, kLaunched>();
    RunScorer(mem, ForwardScorer<kPanels>{p, mem, head});
  } else {
    SetRegisters<kPanels == 1 ? 144 : 152, kLaunched>();
    Carry<kPanels>(p, mem, item, head, role - kPanels);
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const ForwardArgs& p, bool causal) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  if (causal) {
    using Size = PipeSize<kPanels, 2, 3, 1>;
    Launch(ForwardScan<kPanels>, grid, Size::kThreads, Size::kBytes, stream, p);
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
