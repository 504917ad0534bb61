// dq, hadamard_exp, on Hopper: the forward scan of model.md 1.2.
//
// Per chunk, reading q, k, v, dy once and writing dq and -delta (10 D + 8 bytes a row): with the
// state S and normaliser C before the chunk, keys' weights W at the chunk's gauge R and
// e = e^(q + R - lse),
//   g = e (mask(dy v^T) W + dy S^T),   delta = sum_d g,   dq = g - delta e (mask(1) W + C).
// The scorer computes mask(dy v^T); each carrier 64 features of dq, and keeps those rows of S. y is
// not read.
#include "kernels/ela/cuda/hopper_gradient.cuh"
#include "kernels/ela/cuda/hopper_pipe.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

// Streams: v, dy, q. Scores: the masked product, and a panel of ones on and below the diagonal.
template <int kPanels>
using QuerySize = PipeSize<kPanels, 3, 2, 2>;

#ifdef ELA_HOPPER_CODE

template <int kPanels>
using QueryPipe = Pipe<kPanels, 3, 2, 2>;

template <int kPanels>
struct QueryScorer {
  const BackwardArgs& p;
  const QueryPipe<kPanels>& mem;
  int head;
  int chunk = -1;

  __device__ void operator()(int step, const Step& now) {
    const Place at;
    if (now.fresh) mem.WaitStreams(++chunk);
    const uint32_t values = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 1));
    float score[32], sums[2] = {};
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaShared<false, false>(score, KMajor(dy, k), KMajor(values, k), k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    if (step > 0) mem.WaitDone(step - 1);  // its scores are read, and its tiles if it ends a chunk
    StoreLower(mem.Scores(step), at, score, sums);
    FenceProxy();
    Arrive(mem.Scored(step));
    if (now.fresh && chunk > 0 && now.next >= 0 && threadIdx.x % 128 == 0) {
      const CUtensorMap* const streams[3] = {&p.v, &p.dy, &p.q};
      mem.LoadStreams(chunk + 1, streams, head, now.next);
    }
    __syncwarp();
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
                      int head, int carrier) {
  const Place at;
  const uint32_t copy = mem.StateCopy(carrier);
  const float decay = p.walk.plan.log_decay[head] * kLog2E;
  float s[kPanels][32], g[32], h[32], u[32];  // s: features 64 carrier .., columns 64 i ..
  for (int step = 0, chunk = -1;; ++step) {
    mem.WaitPublished(step);
    const Step now = *mem.StepOf(step);
    if (now.stop) break;
    float exponent[2];
    QueryExponents(p, at, head, now.row, now.window, decay, exponent);
    if (now.first) {
      const float* start = StartOf(p.walk, item, now.span, head, false);
      LoadFeatures<kPanels>(start, p.walk.layout, 64 * carrier, at, s);
    }
    if (now.fresh) mem.WaitStreams(++chunk);
    const Gauges gauges = mem.GaugesOf(step);
    const uint32_t keys =
        SharedAddress(mem.Weights(step)) + static_cast<uint32_t>(carrier * kPanelBytes);
    const uint32_t values = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t scores = mem.Scores(step), ones = scores + kPanelBytes;
    WgmmaFence();
    UpdatePanel(keys, values, u);
    WgmmaCommit();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WgmmaShared<false, true>(h, KMajor(ones, k), MnMajor(keys, k), k > 0);
    }
    WgmmaCommit();
    WarpgroupBarrier(CarrierBarrier(carrier));  // every warp has read the copy
    ShrinkAndCopy<kPanels>(gauges.shrink + 64 * carrier, copy, kPanelBytes, at, s);
    WarpgroupBarrier(CarrierBarrier(carrier));
    mem.WaitScored(step);
    StartGradient<kPanels>(dy, copy, scores, keys, g);
    WgmmaWait<2>();
    AddPanel(s[0], u);
    if constexpr (kPanels > 1) {
      WgmmaFence();
      UpdatePanel(keys, values + kPanelBytes, u);
      WgmmaCommit();
      WgmmaWait<1>();
    } else {
      WgmmaWait<0>();
    }
    FinishQuery<kPanels>(p, at, head, now.row, now.window, carrier, exponent,
                         SharedAddress(mem.Stream(chunk, 2)), gauges, mem.Rows(step, 0), g, h);
    WriteAccumulator(at, now.window,
                     static_cast<__nv_bfloat16*>(p.dq) + now.row * p.dq_stride +
                         head * 64 * kPanels + 64 * carrier,
                     p.dq_stride, g);
    if constexpr (kPanels > 1) {
      WgmmaWait<0>();
      AddPanel(s[1], u);
    }
    Arrive(mem.Done(step));
  }
}

/// A panel with ones on and below the diagonal, by the block.
__device__ void FillOnes(unsigned char* panel) {
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * 64;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / 64, column = i % 64;
    *reinterpret_cast<uint16_t*>(panel + ChunkOffset(row, column / 8) + column % 8 * 2) =
        column <= row ? 0x3f80 : 0;
  }
  FenceProxy();
}

#endif  // ELA_HOPPER_CODE

template <int kPanels>
__global__ void __launch_bounds__(QuerySize<kPanels>::kThreads, 3 - kPanels)
    QueryScan(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  constexpr int kLaunched = 128;  // registers a thread
  const QueryPipe<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = static_cast<int>(threadIdx.x) / 128;
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  FillOnes(mem.base + QuerySize<kPanels>::kScoreTiles + kPanelBytes);
  mem.Start();
  if (role == 0) {
    SetRegisters<96, kLaunched>();
    const CUtensorMap* const streams[3] = {&p.v, &p.dy, &p.q};
    RunWeigher<false, true>(mem, p.walk, item, head, {&p.k, true, nullptr, nullptr}, streams,
                            QueryScorer<kPanels>{p, mem, head});
  } else if (kPanels > 1 && role == 1) {
    SetRegisters<64, kLaunched>();
    RunScorer(mem, QueryScorer<kPanels>{p, mem, head});
  } else {
    SetRegisters<kPanels == 1 ? 160 : 176, kLaunched>();
    Carry<kPanels>(p, mem, item, head, role - kPanels);
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const BackwardArgs& p) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  using Size = QuerySize<kPanels>;
  Launch(QueryScan<kPanels>, grid, Size::kThreads, Size::kBytes, stream, p);
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
