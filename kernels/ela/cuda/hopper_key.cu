// dk and dv, hadamard_exp, on Hopper: the reverse scan of model.md 1.2.
//
// Per chunk, from the last to the first, reading q, k, v, dy once and writing dk, dv (12 D + 8
// bytes a row): with the state T and its column t (of -delta) after the chunk, weights X of the
// queries q - lse at the chunk's gauge N, and b = e^(k + N),
//   dk = b (mask(v dy^T - delta) X + v T^T + t),   dv = mask(b X^T) dy + b T.
// The scorer computes b and both masked products; each carrier 64 features of dk and 64 columns of
// dv, and keeps those rows of T.
#include "kernels/ela/cuda/hopper_gradient.cuh"
#include "kernels/ela/cuda/hopper_pipe.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

// Streams: k, v, dy. Scores: mask(v dy^T - delta), mask(b X^T).
template <int kPanels>
using KeySize = PipeSize<kPanels, 3, 2, 2>;

#ifdef ELA_HOPPER_CODE

template <int kPanels>
using KeyPipe = Pipe<kPanels, 3, 2, 2>;

/// What later rows (columns) give to earlier ones, plus `add` of the column, into a panel.
__device__ void StoreUpper(uint32_t panel, const Place& at, const float (&d)[32],
                           const float* add) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int column = 8 * j + 2 * at.t;
    float2 extra = {0.0f, 0.0f};
    if (add != nullptr) extra = *reinterpret_cast<const float2*>(add + column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.row + 8 * i;
      StoreShared(panel + static_cast<uint32_t>(ChunkOffset(row, j) + 4 * at.t),
                  Pack(column >= row ? d[4 * j + 2 * i] + extra.x : 0.0f,
                       column + 1 >= row ? d[4 * j + 2 * i + 1] + extra.y : 0.0f));
    }
  }
}

template <int kPanels>
struct KeyScorer {
  const BackwardArgs& p;
  const KeyPipe<kPanels>& mem;
  int head;
  int chunk = -1;

  __device__ void operator()(int step, const Step& now) {
    const Place at;
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
    if (step > 0) mem.WaitDone(step - 1);  // its scores are read, and its tiles if it ends a chunk
    StoreUpper(mem.Scores(step), at, score, mem.Rows(step, 1));
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<false>(score, b[k], KMajor(x, k), k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    StoreUpper(mem.Scores(step) + kPanelBytes, at, score, nullptr);
    FenceProxy();
    Arrive(mem.Scored(step));
    if (now.fresh && chunk > 0 && now.next >= 0 && threadIdx.x % 128 == 0) {
      const CUtensorMap* const streams[3] = {&p.k, &p.v, &p.dy};
      mem.LoadStreams(chunk + 1, streams, head, now.next);
    }
    __syncwarp();
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
                              Operand(copy + static_cast<uint32_t>(columns)), k > 0);
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
                      int head, int carrier) {
  constexpr int kTile = kPanels * kPanelBytes;
  const Place at;
  const uint32_t copy = mem.StateCopy(0);
  const auto own = static_cast<uint32_t>(carrier * kPanelBytes);
  const int64_t own_column = head * 64 * kPanels + 64 * carrier;
  float s[kPanels][32], out[32], u[32];  // s: features 64 carrier .., columns 64 i ..
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) break;
    if (now.first) {
      const float* start = StartOf(p.walk, item, now.span, head, true);
      LoadFeatures<kPanels>(start, p.walk.layout, 64 * carrier, at, s);
    }
    if (now.fresh) mem.WaitStreams(++chunk);
    const Gauges gauges = mem.GaugesOf(step);
    const uint32_t x = SharedAddress(mem.Weights(step)) + own;
    const uint32_t keys = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t values = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 2)), scores = mem.Scores(step);
    WgmmaFence();
    UpdatePanel(x, dy, u);
    WgmmaCommit();
    // Columns 64 i .. of T lie at copy + i kTile, this carrier's rows of them at `own` there.
    GradientBarrier<kPanels>();  // everyone has read the copy
    ShrinkAndCopy<kPanels>(gauges.shrink + 64 * carrier, copy + own, kTile, at, s);
    GradientBarrier<kPanels>();
    mem.WaitScored(step);
    StartKeyGradient<kPanels>(values, copy + own, scores, x, out);
    WgmmaWait<1>();
    AddPanel(s[0], u);
    if constexpr (kPanels > 1) {
      WgmmaFence();
      UpdatePanel(x, dy + kPanelBytes, u);
      WgmmaCommit();
      WgmmaWait<1>();
    } else {
      WgmmaWait<0>();
    }
    FinishKeys(at, gauges.norm, keys, 64 * carrier, out);
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.dk) + now.row * p.dk_stride + own_column,
                     p.dk_stride, out);
    StartValueGradient<kPanels>(keys, copy + static_cast<uint32_t>(carrier * kTile),
                                scores + kPanelBytes, dy + own, out);
    if constexpr (kPanels > 1) {
      WgmmaWait<1>();
      AddPanel(s[1], u);
    }
    WgmmaWait<0>();
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.dv) + now.row * p.dv_stride + own_column,
                     p.dv_stride, out);
    Arrive(mem.Done(step));
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels>
__global__ void __launch_bounds__(KeySize<kPanels>::kThreads, 3 - kPanels)
    KeyScan(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  constexpr int kLaunched = 128;  // registers a thread
  const KeyPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = static_cast<int>(threadIdx.x) / 128;
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start();
  if (role == 0) {
    SetRegisters<kPanels == 1 ? 112 : 96, kLaunched>();
    const CUtensorMap* const streams[3] = {&p.k, &p.v, &p.dy};
    RunWeigher<true, true>(mem, p.walk, item, head, {&p.q, true, p.lse, p.minus_delta}, streams,
                           KeyScorer<kPanels>{p, mem, head});
  } else if (kPanels > 1 && role == 1) {
    SetRegisters<96, kLaunched>();
    RunScorer(mem, KeyScorer<kPanels>{p, mem, head});
  } else {
    SetRegisters<kPanels == 1 ? 144 : 160, kLaunched>();
    Carry<kPanels>(p, mem, item, head, role - kPanels);
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
