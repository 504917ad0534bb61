// States of segments, hadamard_exp, on Hopper: reads k and v once (4 D bytes a row), writes a state
// a segment. Gradient states: keys q - lse, values dy, and the normaliser sums -delta instead of 1
// (4 D + 8 bytes a row).
//
// A block is two teams of kPanels warpgroups, each warpgroup with 64 features of its team's state.
// The teams take chunks in turn, from the end of the segment whose frame the state is in: there
// decay leaves the largest weights, so gauges hardly rise further on. Both states are added up
// last.
#include "kernels/ela/cuda/hopper_features.cuh"
#include "kernels/ela/cuda/hopper_launch.h"

namespace ela::kernels::cuda::hopper {
namespace {

/// Where things are in a team's part of a block's shared memory, in bytes.
template <int kPanels>
struct StatesSize {
  static constexpr int kTeams = 2, kThreads = 128 * kTeams * kPanels;
  static constexpr int kTile = kPanels * kPanelBytes;
  static constexpr int kStages = 3;                  // of keys and values
  static constexpr int kRows = kStages * 2 * kTile;  // lse and -delta of each
  static constexpr int kBarriers = kRows + kStages * 2 * 64 * 4;
  static constexpr int kTeam = (kBarriers + 64 + 1023) / 1024 * 1024;
  static constexpr int kBytes = kTeams * kTeam + 1024;           // to align
  static_assert((3 - kPanels) * (kBytes + 1024) <= 228 * 1024);  // blocks of a multiprocessor
  // Then a team's state, per warpgroup.
  static constexpr int kState = 64 * (64 * kPanels + 2) * 4;
  static_assert(kPanels * kState <= kRows);
};

#ifdef ELA_HOPPER_CODE

template <int kPanels, bool kGradient>
struct Team : StatesSize<kPanels> {
  using Size = StatesSize<kPanels>;
  using Size::kTile, Size::kStages, Size::kTeams;

  const StatesArgs& p;
  int head;
  int begin, end;  // rows of the segment
  unsigned char* base;

  __device__ unsigned char* Tile(int n, int i) const {
    return base + (n % kStages * 2 + i) * kTile;
  }
  __device__ float* Rows(int n, int i) const {
    return reinterpret_cast<float*>(base + Size::kRows) + (n % kStages * 2 + i) * 64;
  }
  __device__ uint64_t* Loaded(int n) const {
    return reinterpret_cast<uint64_t*>(base + Size::kBarriers) + n % kStages;
  }
  __device__ uint64_t* Used(int n) const { return Loaded(n) + kStages; }

  __device__ int Chunks() const { return (end - begin + kTileRows - 1) / kTileRows; }
  /// Rows of a chunk, counted from the state's own end of the segment.
  __device__ Window RowsOf(int chunk) const {
    if (kGradient) return {begin + chunk * kTileRows, min(end, begin + (chunk + 1) * kTileRows)};
    return {max(begin, end - (chunk + 1) * kTileRows), end - chunk * kTileRows};
  }
  /// By a warp: the team's n-th chunk.
  __device__ void Load(int n, int team) const {
    const int chunk = kTeams * n + team;
    if (chunk >= Chunks()) return;
    const Window rows = RowsOf(chunk);
    const auto lane = static_cast<int>(threadIdx.x % 32u);
    if (kGradient) {
      for (int i = lane; i < kTileRows; i += 32) {
        const bool live = rows.begin + i < rows.end;
        const int64_t at = live ? int64_t{rows.begin + i} * p.walk.heads + head : 0;
        CopyFloat(Rows(n, 0) + i, p.lse + at, live);
        CopyFloat(Rows(n, 1) + i, p.minus_delta + at, live);
      }
      ArriveOnCopies(Loaded(n));
    }
    if (lane != 0) return;
    ExpectBytes(Loaded(n), 2 * kTile);
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      const int column = 64 * (kPanels * head + panel);
      LoadPanel(&p.keys, Loaded(n), Tile(n, 0) + panel * kPanelBytes, column, rows.begin);
      LoadPanel(&p.values, Loaded(n), Tile(n, 1) + panel * kPanelBytes, column, rows.begin);
    }
  }
};

/// Adds the team's n-th chunk to a state. c: the thread's part of the normaliser.
template <int kPanels, bool kGradient, bool kFlat>
__device__ void AddChunk(const Team<kPanels, kGradient>& team, int n, const Window& rows,
                         float decay, int panel, const Place& at, Features<kPanels>* own) {
  // Decay from the chunk's first row to the state's end of the segment.
  const float first = kGradient ? decay * static_cast<float>(rows.begin - team.begin)
                                : decay * static_cast<float>(team.end - 1 - rows.begin);
  const uint32_t tile = SharedAddress(team.Tile(n, 0)) + static_cast<uint32_t>(panel * kPanelBytes);
  const uint32_t values = SharedAddress(team.Tile(n, 1));
  Keys keys;
  float r[2] = {own->m[0], own->m[1]}, sum[2], u[32];
  const auto weigh = [&](bool search) {
    // Exponents of queries say nothing of their size.
    keys.Load(tile, at.warp, {0, rows.end - rows.begin}, search || kGradient);
    const auto by = [&](const auto& tokens) {
      if (search) {
        keys.Largest(tokens, r);
        r[0] = fmaxf(own->m[0], r[0]), r[1] = fmaxf(own->m[1], r[1]);
      }
      return keys.Weigh(tokens, r, sum) && fminf(r[0], r[1]) >= kLeastGauge;
    };
    if constexpr (kGradient) {
      return by(GradientRows<kFlat>(team.Rows(n, 0), team.Rows(n, 1), first, decay));
    } else {
      return by(RowsOf<kFlat>(first, -decay));
    }
  };
  if (!__all_sync(0xffffffffu, weigh(false))) weigh(true);
  own->StartUpdate(keys, values, u);
  if (r[0] != own->m[0] || r[1] != own->m[1]) own->Rise(r);
  own->c[0] += sum[0], own->c[1] += sum[1];
  own->Add(keys, values, u);
}

/// A thread's part of its warpgroup's state, by way of shared memory.
template <int kPanels>
__device__ void Leave(float* to, const Features<kPanels>& own) {
  const int thread = static_cast<int>(threadIdx.x % 128u);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
#pragma unroll
    for (int j = 0; j < 32; ++j) to[(32 * i + j) * 128 + thread] = own.s[i][j];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x % 4u != 0) continue;
    float2* at = reinterpret_cast<float2*>(to + kPanels * 32 * 128);
    at[thread / 4 * 2 + i] = make_float2(own.m[i], own.c[i]);
  }
}
template <int kPanels>
__device__ void Join(const float* from, Features<kPanels>* own) {
  const int thread = static_cast<int>(threadIdx.x % 128u);
  const float2* at = reinterpret_cast<const float2*>(from + kPanels * 32 * 128) + thread / 4 * 2;
  const float r[2] = {fmaxf(own->m[0], at[0].x), fmaxf(own->m[1], at[1].x)};
  own->Rise(r);
  const float low = Exp2(at[0].x - r[0]), high = Exp2(at[1].x - r[1]);
  own->c[0] = fmaf(low, at[0].y, own->c[0]), own->c[1] = fmaf(high, at[1].y, own->c[1]);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      own->s[i][j] = fmaf(j % 4 < 2 ? low : high, from[(32 * i + j) * 128 + thread], own->s[i][j]);
    }
  }
}

#endif  // ELA_HOPPER_CODE

template <int kPanels, bool kGradient, bool kFlat>
__global__ void __launch_bounds__(StatesSize<kPanels>::kThreads, 3 - kPanels)
    SegmentStates(const __grid_constant__ StatesArgs p) {
#ifdef ELA_HOPPER_CODE
  using Size = StatesSize<kPanels>;
  extern __shared__ unsigned char memory[];
  AwaitEarlier();
  const DeviceItem item = p.walk.plan.items[blockIdx.x];
  // The last state of a chain, in scan order, is in no prefix.
  if (item.slot < 0 || (p.prefixes && item.slot == (kGradient ? item.first_slot : item.last_slot)))
    return;
  const Place at;
  const int head = static_cast<int>(blockIdx.y), role = Role();
  const int team_index = role / kPanels, panel = role % kPanels;
  unsigned char* const aligned = memory + ((1024 - SharedAddress(memory) % 1024) % 1024);
  const Team<kPanels, kGradient> team = {{},
                                         p,
                                         head,
                                         static_cast<int>(item.begin),
                                         static_cast<int>(item.end),
                                         aligned + team_index * Size::kTeam};
  const bool loads = panel == 0 && at.warp == 0;
  if (panel == 0 && threadIdx.x % 128u == 0) {
    for (int i = 0; i < Size::kStages; ++i) {
      InitBarrier(team.Loaded(i), kGradient ? 33 : 1);
      InitBarrier(team.Used(i), 4 * kPanels);
    }
    FenceProxy();
  }
  __syncthreads();
  if (loads) {
    for (int n = 0; n < Size::kStages; ++n) team.Load(n, team_index);
  }
  const float decay = kFlat ? 0.0f : p.walk.plan.log_decay[head] * kLog2E;
  Features<kPanels> own = {{kEmptyMax, kEmptyMax}, {}, {}};
  for (int n = 0; Size::kTeams * n + team_index < team.Chunks(); ++n) {
    const Window rows = team.RowsOf(Size::kTeams * n + team_index);
    WaitBarrier(team.Loaded(n), n / Size::kStages % 2);
    AddChunk<kPanels, kGradient, kFlat>(team, n, rows, decay, panel, at, &own);
    ArriveWarp(team.Used(n));
    if (loads && n > 0) {
      // By now the team has used the chunk before.
      WaitBarrier(team.Used(n - 1), (n - 1) / Size::kStages % 2);
      team.Load(n - 1 + Size::kStages, team_index);
    }
  }
  own.c[0] = QuadSum(own.c[0]), own.c[1] = QuadSum(own.c[1]);
  auto* const other = reinterpret_cast<float*>(aligned + Size::kTeam + panel * Size::kState);
  __syncthreads();  // tiles are used
  if (team_index > 0) Leave(other, own);
  __syncthreads();
  if (team_index > 0) return;
  Join(other, &own);
  float* to =
      p.walk.states + (static_cast<int64_t>(item.slot) * p.walk.heads + head) * p.walk.layout.size;
  own.Store(to, p.walk.layout, 64 * panel, at);
  if (threadIdx.x != 0) return;
  to[p.walk.layout.shift] = p.walk.plan.log_decay[head] * static_cast<float>(item.end - item.begin);
#endif
}

template <int kPanels>
void LaunchForPanels(cudaStream_t stream, const StatesArgs& p, bool gradient) {
  const dim3 grid(static_cast<unsigned>(p.walk.plan.num_items),
                  static_cast<unsigned>(p.walk.heads));
  using Size = StatesSize<kPanels>;
  constexpr int kThreads = Size::kThreads, kBytes = Size::kBytes;
  const auto launch = [&](auto kernel) { Launch(kernel, grid, kThreads, kBytes, stream, p); };
  if (gradient) {
    launch(p.walk.decays ? SegmentStates<kPanels, true, false>
                         : SegmentStates<kPanels, true, true>);
  } else {
    launch(p.walk.decays ? SegmentStates<kPanels, false, false>
                         : SegmentStates<kPanels, false, true>);
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
