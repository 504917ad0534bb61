// States of segments, hadamard_exp, on Hopper: reads k and v once (4 D bytes a row), writes a state
// a segment. Gradient states: keys q - lse, values dy, walked backwards, and the normaliser sums
// -delta instead of 1 (4 D + 8 bytes a row).
#include "kernels/ela/cuda/hopper_launch.h"
#include "kernels/ela/cuda/hopper_roles.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

#ifdef ELA_HOPPER_CODE

template <int kPanels>
using StatesPipe = Pipe<kPanels, 1, 3, 0>;  // stream: values
template <int kPanels, bool kGradient>
using StatesLoader = Loader<kGradient, kGradient, kPanels, 1, 3, 0>;

template <int kPanels, bool kGradient>
__device__ void Carry(const StatesArgs& p, const StatesPipe<kPanels>& mem, const DeviceItem& item,
                      int head, int carrier, const StatesLoader<kPanels, kGradient>& loader) {
  const Place at;
  const bool loads = carrier == 0 && at.warp == 0;
  if (loads) loader.Start(item);
  float s[kPanels][32] = {};
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    if (mem.StepOf(step)->stop) break;
    ++chunk;  // of one step each
    if (loads) loader.AfterPublished(step, chunk);
    mem.WaitStreams(chunk);
    const uint32_t keys = SharedAddress(mem.Weights(step));
    const uint32_t values =
        SharedAddress(mem.Stream(chunk, 0)) + static_cast<uint32_t>(carrier * kPanelBytes);
    float u[kPanels][32];
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kPanels; ++i) UpdatePanel(keys + i * kPanelBytes, values, u[i]);
    WgmmaCommit();
    if (mem.AnyRaised(step)) ShrinkState<kPanels>(mem.GaugesOf(step), at, s);
    WgmmaWait<0>();
    Arrive(mem.Used(step));
    Arrive(mem.Done(step));
#pragma unroll
    for (int i = 0; i < kPanels; ++i) AddPanel(s[i], u[i]);
  }
  float* to =
      p.walk.states + (static_cast<int64_t>(item.slot) * p.walk.heads + head) * p.walk.layout.size;
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    StoreStateTile(to, p.walk.layout, 64 * i, 64 * carrier, at.warp, s[i]);
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kGradient, bool kFlat>
__global__ void __launch_bounds__(PipeSize<kPanels, 1, 3, 0>::kThreads, 3 - kPanels)
    SegmentStates(const __grid_constant__ StatesArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  constexpr int kWeighers = PipeSize<kPanels, 1, 3, 0>::kWeighers, kLaunched = 128;
  const StatesPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  // The last state of a chain, in scan order, is in no prefix.
  if (item.slot < 0 || (p.prefixes && item.slot == (kGradient ? item.first_slot : item.last_slot)))
    return;
  mem.Start(StatesLoader<kPanels, kGradient>::kKeyArrivals);
  if (role < kWeighers) {
    if constexpr (kPanels > 1) SetRegisters<96, kLaunched>();
    RunWeigher<kGradient, false, kFlat>(mem, p.walk, item, head, role, false, NoScorer());
  } else {
    if constexpr (kPanels > 1) SetRegisters<160, kLaunched>();
    const CUtensorMap* const streams[1] = {&p.values};
    Carry<kPanels, kGradient>(p, mem, item, head, role - kWeighers,
                              {mem, p.walk, head, &p.keys, streams, p.lse, p.minus_delta});
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const StatesArgs& p, bool gradient) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  using Size = PipeSize<kPanels, 1, 3, 0>;
  constexpr int kThreads = Size::kThreads, kBytes = Size::kBytes;
  if (gradient) {
    Launch(SegmentStates<kPanels, true, false>, grid, kThreads, kBytes, stream, p);
  } else if (p.walk.decays) {
    Launch(SegmentStates<kPanels, false, false>, grid, kThreads, kBytes, stream, p);
  } else {
    Launch(SegmentStates<kPanels, false, true>, grid, kThreads, kBytes, stream, p);
  }
}

}  // namespace

void LaunchStates(cudaStream_t stream, int panels, const StatesArgs& p, bool gradient) {
  if (panels == 1) {
    LaunchForPanels<1>(stream, p, gradient);
  } else {
    LaunchForPanels<2>(stream, p, gradient);
  }
}

}  // namespace ela::kernels::cuda::hopper
