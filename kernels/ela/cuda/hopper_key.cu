// dk and dv, hadamard_exp, on Hopper: the reverse scan of model.md 1.2.
//
// Per chunk, from the last to the first, reading q, k, v, dy once and writing dk, dv (12 D + 8
// bytes a row): with the state T and its column t (of -delta) after the chunk, weights X of the
// queries q - lse at the chunk's gauge N, and b = e^(k + N),
//   dk = b (mask(v dy^T - delta) X + v T^T + t),   dv = mask(b X^T) dy + b T.
//
//   keepers  kPanels warpgroups, each of 64 features: keep their rows of T, publish X and a copy of
//            T, and compute dk transposed, [features][rows], so that T and X are operands from
//            registers
//   reader   a warpgroup that computes the masked products and dv, and loads the tiles
#include "kernels/ela/cuda/hopper_gradient_pipe.cuh"
#include "kernels/ela/cuda/hopper_keep.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

// Own: of a step, weights of queries, a copy of T, gauges, and what the step is.
template <int kPanels>
inline constexpr int kKeyOwn = (1 + kPanels) * kPanels* kPanelBytes + 64 * kPanels * 4 + 64;
template <int kPanels>
using KeySize = GradientSize<kPanels, 2, kKeyOwn<kPanels>>;

#ifdef ELA_HOPPER_CODE

/// What the reader is told about a step.
struct KeyStep {
  Window window;
  bool last;  // of its chunk
};

template <int kPanels>
struct KeyMemory : GradientMemory<kPanels, 2, kKeyOwn<kPanels>> {
  using Base = GradientMemory<kPanels, 2, kKeyOwn<kPanels>>;
  using Base::Base, Base::Own, Base::OwnBarrier, Base::kTile;

  __device__ uint32_t Weights() const { return SharedAddress(Own()); }
  /// Of T: 64 columns a tile.
  __device__ uint32_t Copy() const { return Weights() + kTile; }
  __device__ float* Gauge() const {
    return reinterpret_cast<float*>(Own() + (1 + kPanels) * kTile);
  }
  __device__ KeyStep* StepOf() const { return reinterpret_cast<KeyStep*>(Gauge() + 64 * kPanels); }
  __device__ uint64_t* Published() const { return OwnBarrier(0); }
  __device__ uint64_t* Read() const { return OwnBarrier(1); }
  __device__ int* SharedInt() const { return reinterpret_cast<int*>(OwnBarrier(4)); }

  __device__ void Start() const {
    if (threadIdx.x == 0) {
      Base::InitBarriers(4 * (kPanels + 1));
      InitBarrier(Published(), 4 * kPanels);
      InitBarrier(Read(), 4);
      FenceProxy();
    }
    __syncthreads();
  }
};

template <int kPanels>
using KeyLoader = GradientLoader<true, KeyMemory<kPanels>>;

/// Adds a number of its own to each column of an accumulator.
__device__ inline void AddToColumns(const Place& at, const float* columns, float (&d)[32]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 add = *reinterpret_cast<const float2*>(columns + 8 * j + 2 * at.t);
#pragma unroll
    for (int i = 0; i < 2; ++i) d[4 * j + 2 * i] += add.x, d[4 * j + 2 * i + 1] += add.y;
  }
}

/// dv of a step.
template <int kPanels>
__device__ void ReadStep(const BackwardArgs& p, const KeyMemory<kPanels>& mem, const Chunk& now,
                         const Window& window, int head, float decay, uint32_t keys, uint32_t dy,
                         const Place& at, const TriangleMask<true>& upper) {
  const float exponent[2] = {decay * window.Step<true>(at.row),
                             decay * window.Step<true>(at.row + 8)};
  uint32_t b[4 * kPanels][4], scores[4][4];
  WeighReaders<kPanels>(keys, mem.Gauge(), exponent, at.warp, b);
  {
    float score[32];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<false>(score, b[k], KMajor(mem.Weights(), k), k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      PackFragment(score, k, scores[k]);
      upper(k, scores[k]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    const uint32_t copy = mem.Copy() + static_cast<uint32_t>(i * mem.kTile);
    float dv[32];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      WgmmaRegisters<true>(dv, b[k], MnMajor(copy, k), k > 0);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WgmmaRegisters<true>(dv, scores[k], MnMajor(dy + static_cast<uint32_t>(i * kPanelBytes), k),
                           true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    if (i + 1 == kPanels) ArriveWarp(mem.Read());
    WriteAccumulator(at, window,
                     static_cast<__nv_bfloat16*>(p.dv) + int64_t{now.row} * p.dv_stride +
                         64 * (kPanels * head + i),
                     p.dv_stride, dv);
  }
}

template <int kPanels>
__device__ void Read(const BackwardArgs& p, const KeyMemory<kPanels>& mem, const DeviceItem& item,
                     int head, const KeyLoader<kPanels>& loader) {
  const Place at;
  const TriangleMask<true> upper(at);
  const float decay = p.walk.plan.log_decay[head] * kLog2E;
  const bool loads = at.warp == 0;
  if (loads) {
    loader.Start(item);
    for (int chunk = 0; chunk < 2; ++chunk) {
      loader.Find(chunk);
      loader.LoadKeys(chunk);
      loader.LoadStreams(chunk);
    }
  }
  for (int chunk = 0, step = 0;; ++chunk) {
    WarpgroupBarrier(kOthersBarrier);  // the chunk has been found
    const Chunk now = *mem.ChunkOf(chunk);
    if (now.row < 0) return;
    const uint32_t keys = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t values = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 2));
    {
      mem.WaitStreams(chunk);
      float score[32];
      StartScores<kPanels>(values, dy, score);
      mem.WaitKeys(chunk);
      WgmmaWait<0>();
      AddToColumns(at, mem.Rows(chunk, 1), score);
      PublishScores(mem, chunk, at, upper, score);
    }
    if (loads && chunk > 0) {
      mem.WaitStreamsUsed(chunk - 1);
      loader.LoadStreams(chunk + 1);
    }
    for (bool last = false; !last; ++step) {
      WaitBarrier(mem.Published(), step % 2);
      const KeyStep info = *mem.StepOf();
      last = info.last;
      if (last && loads) {
        // Keepers have weighed the chunk's queries, and every warp here has seen that they came:
        // before they were published it had published scores.
        loader.Find(chunk + 2);
        loader.LoadKeys(chunk + 2);
      }
      ReadStep(p, mem, now, info.window, head, decay, keys, dy, at, upper);
    }
    ArriveWarp(mem.StreamsUsed(chunk));
  }
}

/// dk = b (dk + c) for 64 features; panel: of keys k, b = e^(k + m).
template <class Rows>
__device__ void WeighKeys(uint32_t panel, const Place& at, const Rows& rows, const float (&m)[2],
                          const float (&c)[2], float (&dk)[32]) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    uint32_t k[4];
    LoadTransposed(k, panel, at.warp, s);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 shift = rows.Shift(s, half);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 x = Unpack(Saturate2(k[2 * half + i]));
        float* d = dk + 8 * s + 4 * half + 2 * i;
        d[0] = (d[0] + c[i]) * Exp2(fmaf(x.x, kLog2E, shift.x + m[i]));
        d[1] = (d[1] + c[i]) * Exp2(fmaf(x.y, kLog2E, shift.y + m[i]));
      }
    }
  }
}

/// Starts dk of 64 features, and publishes what the reader needs of them and of the step.
template <int kPanels>
__device__ void Publish(const KeyMemory<kPanels>& mem, int panel, const Place& at,
                        const Features<kPanels>& own, const Keys& queries, uint32_t values,
                        uint32_t scores, const KeyStep& step, float (&dk)[32]) {
  const auto own_rows = static_cast<uint32_t>(panel * kPanelBytes);
  uint32_t state[4 * kPanels][4];
  queries.Store(mem.Weights() + own_rows, at.warp);
  PackState(own, state);
  WgmmaFence();
  MultiplyFeatures<kPanels>(state, queries, values, scores, dk);
  WgmmaCommit();
  // What products in flight read may be read here too.
#pragma unroll
  for (int i = 0; i < 4 * kPanels; ++i) {
    const auto columns = static_cast<uint32_t>(i / 4 * mem.kTile);
    StoreFragment(mem.Copy() + columns + own_rows, at.warp, i % 4, state[i]);
  }
  if (at.t == 0) {
    mem.Gauge()[64 * panel + at.row] = own.m[0];
    mem.Gauge()[64 * panel + at.row + 8] = own.m[1];
  }
  if (threadIdx.x == 0) *mem.StepOf() = step;
  FenceProxy();
  ArriveWarp(mem.Published());
}

template <int kPanels, bool kFlat>
__device__ void Keep(const BackwardArgs& p, const KeyMemory<kPanels>& mem, const DeviceItem& item,
                     int head, int panel) {
  const Place at;
  const float decay = kFlat ? 0.0f : p.walk.plan.log_decay[head] * kLog2E;
  const int64_t own_column = 64 * (kPanels * head + panel);
  const auto own_rows = static_cast<uint32_t>(panel * kPanelBytes);
  Features<kPanels> own;
  int step = 0;
  for (int chunk = 0;; ++chunk) {
    mem.WaitKeys(chunk);
    const Chunk now = *mem.ChunkOf(chunk);
    if (now.row < 0) break;
    if (now.first) {
      own.Load(StartOf(p.walk, item, now.span, head, true), p.walk.layout, 64 * panel, at);
    }
    const uint32_t k = SharedAddress(mem.Stream(chunk, 0)) + own_rows;
    const uint32_t values = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 2));
    for (Window left{0, now.count}; left.begin < left.end; ++step) {
      Keys queries;
      float r[2], sum[2], dk[32], u[32];
      const Window window = WeighStep<true, kFlat>(
          KeyRows{mem.Keys(chunk), left, decay, mem.Rows(chunk, 0), mem.Rows(chunk, 1)}, panel, own,
          at, p.walk.slow_chunks, mem.SharedInt(), &queries, r, sum);
      const bool fresh = left.end == now.count;
      left.end = window.begin;
      const bool last = left.begin == left.end;
      if (r[0] != own.m[0] || r[1] != own.m[1]) own.Rise(r);
      if (fresh) {
        mem.WaitStreams(chunk);
        mem.WaitScored(chunk);
      }
      if (step > 0) WaitBarrier(mem.Read(), (step - 1) % 2);
      Publish(mem, panel, at, own, queries, values, mem.Scores(chunk), {window, last}, dk);
      WgmmaWait<0>();
      own.StartUpdate(queries, dy, u);
      const RowsOf<kFlat> rows(decay * static_cast<float>(window.end), -decay);
      WeighKeys(k, at, rows, own.m, own.c, dk);
      own.template Pass<kFlat>(sum, decay, window);
      own.Add(queries, dy, u);
      if (last) ArriveWarp(mem.StreamsUsed(chunk));
      WriteFeatures(at, window,
                    static_cast<__nv_bfloat16*>(p.dk) + int64_t{now.row} * p.dk_stride + own_column,
                    p.dk_stride, dk);
    }
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kFlat>
__global__ void __launch_bounds__(KeySize<kPanels>::kThreads, 3 - kPanels)
    KeyScan(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  constexpr int kLaunched = KeySize<kPanels>::kLaunched;
  const KeyMemory<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start();
  if (role < kPanels) {
    SetRegisters<kPanels == 1 ? 152 : 184, kLaunched>();
    Keep<kPanels, kFlat>(p, mem, item, head, role);
  } else {
    SetRegisters<kPanels == 1 ? 104 : 136, kLaunched>();
    Read<kPanels>(p, mem, item, head,
                  {mem, p.walk, head, &p.q, {&p.k, &p.v, &p.dy}, p.lse, p.minus_delta});
  }
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const BackwardArgs& p) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  using Size = KeySize<kPanels>;
  Launch(p.walk.decays ? KeyScan<kPanels, false> : KeyScan<kPanels, true>, grid, Size::kThreads,
         Size::kBytes, stream, p);
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
