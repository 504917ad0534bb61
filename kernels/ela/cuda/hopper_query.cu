// dq, hadamard_exp, on Hopper: the forward scan of model.md 1.2.
//
// Per chunk, reading q, k, v, dy once and writing dq and -delta (10 D + 8 bytes a row): with the
// state S and normaliser C before the chunk, keys' weights W at the chunk's gauge R and
// e = e^(q + R - lse),
//   g = e (mask(dy v^T) W + dy S^T),   h = e (mask(1) W + C),
//   delta = sum_d g / sum_d h,         dq = g - delta h,
// where sum_d h is 1 but for rounding. y is not read.
//
//   keepers  kPanels warpgroups, each of 64 features: keep their rows of S, and compute g and h
//            transposed, [features][rows], so that S and W are operands from registers and never
//            in shared memory
//   scorer   a warpgroup that computes mask(dy v^T), ahead of them, and loads the tiles
#include "kernels/ela/cuda/hopper_gradient_pipe.cuh"
#include "kernels/ela/cuda/hopper_keep.cuh"

namespace ela::kernels::cuda::hopper {
namespace {

// Streams: v, dy, q. Own: a panel of ones on and below the diagonal, then sums over features.
template <int kPanels>
inline constexpr int kQuerySlots = kPanels == 1 ? 2 : 3;
template <int kPanels>
inline constexpr int kQueryOwn = kPanelBytes + 4 * kPanels * 32 * 16;
template <int kPanels>
using QuerySize = GradientSize<kPanels, kQuerySlots<kPanels>, kQueryOwn<kPanels>>;

#ifdef ELA_HOPPER_CODE

template <int kPanels>
struct QueryMemory : GradientMemory<kPanels, kQuerySlots<kPanels>, kQueryOwn<kPanels>> {
  using Base = GradientMemory<kPanels, kQuerySlots<kPanels>, kQueryOwn<kPanels>>;
  using Base::Base, Base::Own, Base::OwnBarrier;

  __device__ uint32_t Ones() const { return SharedAddress(Own()); }
  /// Sums of a step over a warp's 16 features: of g and of h, for rows 2 lane and the next. All
  /// have been read before the next step's keys are weighed.
  __device__ float4* Sums(int warp) const {
    return reinterpret_cast<float4*>(Own() + kPanelBytes) + 32 * warp;
  }
  __device__ uint64_t* KeysUsed(int chunk) const { return OwnBarrier(chunk % 2); }
  __device__ uint64_t* Summed(int step) const { return OwnBarrier(2 + step % 2); }
  __device__ int* SharedInt() const { return reinterpret_cast<int*>(OwnBarrier(4)); }

  __device__ void Start() const {
    if (threadIdx.x == 0) {
      Base::InitBarriers(4 * kPanels);
      for (int i = 0; i < 2; ++i) {
        InitBarrier(KeysUsed(i), 4 * kPanels);
        InitBarrier(Summed(i), 4 * kPanels);
      }
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * 32; i += Base::kThreads) {
      const int row = i / 32, column = i % 32 * 2;
      const uint32_t ones = (column <= row ? 0x3f80u : 0u) | (column < row ? 0x3f800000u : 0u);
      StoreShared(Ones() + static_cast<uint32_t>(ChunkOffset(row, column / 8) + column % 8 * 2),
                  ones);
    }
    FenceProxy();
    __syncthreads();
  }
};

template <int kPanels>
using QueryLoader = GradientLoader<false, QueryMemory<kPanels>>;

template <int kPanels>
__device__ void Score(const QueryMemory<kPanels>& mem, const DeviceItem& item,
                      const QueryLoader<kPanels>& loader) {
  constexpr int kSlots = kQuerySlots<kPanels>;
  const Place at;
  const TriangleMask<false> lower(at);
  const bool loads = at.warp == 0;
  if (loads) {
    loader.Start(item);
    for (int chunk = 0; chunk < kSlots; ++chunk) {
      loader.Find(chunk);
      if (chunk < 2) loader.LoadKeys(chunk);
      loader.LoadStreams(chunk);
    }
  }
  for (int chunk = 0;; ++chunk) {
    // The chunk has been found, and the first warp has seen that the scores two before are used.
    WarpgroupBarrier(kOthersBarrier);
    if (mem.ChunkOf(chunk)->row < 0) return;
    mem.WaitStreams(chunk);
    float score[32];
    StartScores<kPanels>(SharedAddress(mem.Stream(chunk, 1)), SharedAddress(mem.Stream(chunk, 0)),
                         score);
    WgmmaWait<0>();
    PublishScores(mem, chunk, at, lower, score);
    if (!loads || chunk == 0) continue;
    loader.Find(chunk - 1 + kSlots);
    WaitBarrier(mem.KeysUsed(chunk - 1), (chunk - 1) / 2 % 2);
    loader.LoadKeys(chunk + 1);
    mem.WaitStreamsUsed(chunk - 1);
    loader.LoadStreams(chunk - 1 + kSlots);
  }
}

/// One stage of adding up x[i] over lanes: this lane gets half of the sums, over two lanes each.
template <int kCount>
__device__ void SumHalf(int lanes, const float (&x)[kCount], float (&half)[kCount / 2]) {
  const bool upper = (threadIdx.x & static_cast<unsigned>(lanes)) != 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float keep = upper ? x[i + kCount / 2] : x[i], give = upper ? x[i] : x[i + kCount / 2];
    half[i] = keep + __shfl_xor_sync(0xffffffffu, give, lanes);
  }
}

/// x[2 j + c], of rows 8 j + 2 t + c, over the 8 lanes of a t: the sums of rows 2 lane + c.
__device__ inline float2 SumRows(const float (&x)[16]) {
  float a[8], b[4], c[2];
  SumHalf(16, x, a);
  SumHalf(8, a, b);
  SumHalf(4, b, c);
  return {c[0], c[1]};
}

/// g and h of 64 features, before the weights e of their queries (panel); leaves sums over the
/// warp's.
template <bool kFlat>
__device__ void WeighQueries(uint32_t panel, const Place& at, const ShiftedRows<kFlat>& rows,
                             const float (&m)[2], const float (&c)[2], float4* sums, float (&g)[32],
                             float (&h)[32]) {
  float delta[16], total[16];
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    uint32_t q[4];
    LoadTransposed(q, panel, at.warp, s);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 shift = rows.Shift(s, half);
      const int j = 2 * s + half;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 x = Unpack(Saturate2(q[2 * half + i]));
        const float e0 = Exp2(fmaf(x.x, kLog2E, shift.x + m[i]));
        const float e1 = Exp2(fmaf(x.y, kLog2E, shift.y + m[i]));
        float *gi = g + 4 * j + 2 * i, *hi = h + 4 * j + 2 * i;
        gi[0] *= e0, gi[1] *= e1;
        hi[0] = (hi[0] + c[i]) * e0, hi[1] = (hi[1] + c[i]) * e1;
        delta[2 * j] = i == 0 ? gi[0] : delta[2 * j] + gi[0];
        delta[2 * j + 1] = i == 0 ? gi[1] : delta[2 * j + 1] + gi[1];
        total[2 * j] = i == 0 ? hi[0] : total[2 * j] + hi[0];
        total[2 * j + 1] = i == 0 ? hi[1] : total[2 * j + 1] + hi[1];
      }
    }
  }
  const float2 d = SumRows(delta), t = SumRows(total);
  sums[threadIdx.x % 32u] = make_float4(d.x, t.x, d.y, t.y);
}

/// delta of rows 2 lane and the next, of a step.
template <int kPanels>
__device__ float2 Delta(const QueryMemory<kPanels>& mem) {
  float4 all = {};
#pragma unroll
  for (int warp = 0; warp < 4 * kPanels; ++warp) {
    const float4 x = mem.Sums(warp)[threadIdx.x % 32u];
    all.x += x.x, all.y += x.y, all.z += x.z, all.w += x.w;
  }
  return {all.x / all.y, all.z / all.w};
}

/// dq = g - delta h of 64 features, once the sums of all are there; and -delta.
template <int kPanels>
__device__ void WriteStep(const BackwardArgs& p, const QueryMemory<kPanels>& mem, int step,
                          const Chunk& now, const Window& window, int head, int panel,
                          const Place& at, float (&g)[32], const float (&h)[32]) {
  WaitBarrier(mem.Summed(step), step / 2 % 2);
  const float2 delta = Delta(mem);
  if (panel == 0 && at.warp == 0) {
    const int row = static_cast<int>(threadIdx.x) * 2;
    float* to = p.minus_delta + (int64_t{now.row} + row) * p.walk.heads + head;
    if (window.Holds(row)) to[0] = -delta.x;
    if (window.Holds(row + 1)) to[p.walk.heads] = -delta.y;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float x = __shfl_sync(0xffffffffu, delta.x, 4 * j + at.t);
    const float y = __shfl_sync(0xffffffffu, delta.y, 4 * j + at.t);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      g[4 * j + 2 * i] -= x * h[4 * j + 2 * i];
      g[4 * j + 2 * i + 1] -= y * h[4 * j + 2 * i + 1];
    }
  }
  const int64_t own_column = 64 * (kPanels * head + panel);
  WriteFeatures(at, window,
                static_cast<__nv_bfloat16*>(p.dq) + int64_t{now.row} * p.dq_stride + own_column,
                p.dq_stride, g);
}

template <int kPanels, bool kFlat>
__device__ void Keep(const BackwardArgs& p, const QueryMemory<kPanels>& mem, const DeviceItem& item,
                     int head, int panel) {
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
    const uint32_t values = SharedAddress(mem.Stream(chunk, 0));
    const uint32_t dy = SharedAddress(mem.Stream(chunk, 1));
    const uint32_t queries =
        SharedAddress(mem.Stream(chunk, 2)) + static_cast<uint32_t>(panel * kPanelBytes);
    for (Window left{0, now.count}; left.begin < left.end; ++step) {
      Keys keys;
      float r[2], sum[2], g[32], h[32];
      const Window window =
          WeighStep<false, kFlat>(KeyRows{mem.Keys(chunk), left, decay, nullptr, nullptr}, panel,
                                  own, at, p.walk.slow_chunks, mem.SharedInt(), &keys, r, sum);
      const bool fresh = left.begin == 0;
      left.begin = window.end;
      const bool last = left.begin == left.end;
      if (last) ArriveWarp(mem.KeysUsed(chunk));
      if (r[0] != own.m[0] || r[1] != own.m[1]) own.Rise(r);
      if (fresh) {
        mem.WaitStreams(chunk);
        mem.WaitScored(chunk);
      }
      {
        uint32_t state[4 * kPanels][4];
        PackState(own, state);
        WgmmaFence();
        MultiplyFeatures<kPanels>(state, keys, dy, mem.Scores(chunk), g);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        WgmmaRegisters<false>(h, keys.a[k], KMajor(mem.Ones(), k), k > 0);
      }
      WgmmaCommit();
      WgmmaWait<0>();
      const ShiftedRows<kFlat> rows(mem.Rows(chunk, 0),
                                    decay * static_cast<float>(1 - window.begin), decay);
      WeighQueries(queries, at, rows, own.m, own.c, mem.Sums(4 * panel + at.warp), g, h);
      ArriveWarp(mem.Summed(step));
      float u[32];
      own.StartUpdate(keys, values, u);
      own.template Pass<kFlat>(sum, decay, window);
      own.Add(keys, values, u);
      if (last) ArriveWarp(mem.StreamsUsed(chunk));
      WriteStep(p, mem, step, now, window, head, panel, at, g, h);
    }
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kFlat>
__global__ void __launch_bounds__(QuerySize<kPanels>::kThreads, 3 - kPanels)
    QueryScan(const __grid_constant__ BackwardArgs p) {
#ifdef ELA_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  constexpr int kLaunched = QuerySize<kPanels>::kLaunched;
  const QueryMemory<kPanels> mem(memory);
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  mem.Start();
  if (role < kPanels) {
    SetRegisters<kPanels == 1 ? 184 : 216, kLaunched>();
    Keep<kPanels, kFlat>(p, mem, item, head, role);
  } else {
    SetRegisters<72, kLaunched>();
    Score<kPanels>(mem, item, {mem, p.walk, head, &p.k, {&p.v, &p.dy, &p.q}, p.lse, nullptr});
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
