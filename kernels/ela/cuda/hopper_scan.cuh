// What the Hopper scans share: how a block walks its item, and how a tile of keys becomes weights.
//
// A block is kPanels warpgroups (head dim 64 kPanels), walks an item in chunks of at most 64 rows
// that never cross a span, and keeps a state S [D][Dv] in registers. All exponents are base 2.
//
// Exactness: a chunk has one gauge R = max(m, its keys). Where a key grows by more than kMaxGrowth
// within the chunk, earlier rows would lose what they saw; then only the rows before the growth
// are taken as a window, and the chunk is walked again from there. A window of one row is always
// exact, so any input is.
#pragma once

#include "kernels/hopper.cuh"
#include "kernels/ela/cuda/scan.cuh"

namespace ela::kernels::cuda::hopper {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kMaxGrowth = 60.0f * kLog2E;  // in base 2

/// What every scan's kernel receives.
struct WalkArgs {
  DevicePlan plan;
  StateLayout layout;
  float* states;             // [slots, H, size]
  const float* edge_states;  // [B, H, size] or null
  unsigned long long* slow_chunks;
  int heads;
};

#ifdef ELA_HOPPER_CODE

/// The chunks of an item, in scan order. Reads global memory only where a span ends.
struct Walk {
  const int64_t* span_begin;
  int64_t item_begin, item_end;
  int64_t row = 0;    // first row of the chunk
  int64_t edge = 0;   // where the next chunk starts (reverse: ends)
  int64_t limit = 0;  // where the span or the item ends in scan order
  int span;
  int count = 0;       // rows of the chunk
  bool first = false;  // of its span, or of the item

  __device__ Walk(const DevicePlan& plan, const DeviceItem& item, bool reverse)
      : span_begin(plan.span_begin), item_begin(item.begin), item_end(item.end), span(item.span) {
    edge = reverse ? item_end : item_begin;
    if (reverse) {
      while (span_begin[span + 1] < item_end) ++span;
    }
    limit = reverse ? max(span_begin[span], item_begin) : min(span_begin[span + 1], item_end);
    first = true;
  }
  /// False past the last chunk.
  template <bool kReverse>
  __device__ bool Next() {
    first = edge == (kReverse ? item_end : item_begin);
    if constexpr (kReverse) {
      if (edge <= item_begin) return false;
      while (limit >= edge) {
        --span;
        limit = max(span_begin[span], item_begin);
        first = true;
      }
      row = max(limit, edge - kTileRows);
      count = static_cast<int>(edge - row);
      edge = row;
    } else {
      if (edge >= item_end) return false;
      while (limit <= edge) {
        ++span;
        limit = min(span_begin[span + 1], item_end);
        first = true;
      }
      row = edge;
      edge = min(limit, row + kTileRows);
      count = static_cast<int>(edge - row);
    }
    return true;
  }
};

/// Rows [begin, end) of a tile that are worked on at once.
struct Window {
  int begin, end;
  __device__ bool Holds(int row) const { return row >= begin && row < end; }
  /// Position of a row in scan order, from 1: so many steps of decay after the state's last row.
  template <bool kReverse>
  __device__ float Step(int row) const {
    return static_cast<float>(kReverse ? end - row : row - begin + 1);
  }
};

/// Per feature, in shared memory: the chunk's gauge, what the state shrinks by to get there, and
/// the normaliser before the chunk in the chunk's gauge.
struct Gauges {
  float* r;
  float* shrink;
  float* norm;
};

inline constexpr uint32_t kNoKeys = 0xff80ff80u;  // two of minus infinity: of weight zero
inline constexpr int kWeigherBarrier = 1;         // named barriers of warpgroups, from here on

/// Feature column of a panel that this thread keeps the gauge and the normaliser of. Threads of a
/// warpgroup work in groups of 16 on 8 columns, each on 4 rows; two threads keep the same column.
__device__ inline int OwnColumn() {
  const int lane = static_cast<int>(threadIdx.x) % 16;
  return static_cast<int>(threadIdx.x) % 128 / 16 * 8 + (lane >> 3) * 4 + ((lane >> 2) & 1) * 2 +
         ((lane >> 1) & 1);
}

/// x[c] over the 16 threads of a group, combined; the thread's own column's result.
template <class Combine>
__device__ float ReduceColumns(float (&x)[8], const Combine& combine) {
  const int lane = static_cast<int>(threadIdx.x);
  float half[4], quarter[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float give = lane & 8 ? x[i] : x[i + 4], keep = lane & 8 ? x[i + 4] : x[i];
    half[i] = combine(keep, __shfl_xor_sync(0xffffffffu, give, 8));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float give = lane & 4 ? half[i] : half[i + 2], keep = lane & 4 ? half[i + 2] : half[i];
    quarter[i] = combine(keep, __shfl_xor_sync(0xffffffffu, give, 4));
  }
  const float give = lane & 2 ? quarter[0] : quarter[1], keep = lane & 2 ? quarter[1] : quarter[0];
  const float own = combine(keep, __shfl_xor_sync(0xffffffffu, give, 2));
  return combine(own, __shfl_xor_sync(0xffffffffu, own, 1));
}

/// The thread's running gauge and normaliser, of OwnColumn().
struct OwnFeature {
  float m = kEmptyMax, c = 0.0f;
};

/// Exponent of the key in a row and column.
template <bool kReverse>
__device__ float KeyExponent(const unsigned char* keys, const Window& window, int row, int column,
                             float decay, const float* row_shift) {
  const auto bits =
      *reinterpret_cast<const uint16_t*>(keys + ChunkOffset(row, column / 8) + column % 8 * 2);
  const float key = Saturate(__uint_as_float(static_cast<uint32_t>(bits) << 16));
  return fmaf(
      key, kLog2E,
      -(decay * window.Step<kReverse>(row) + (row_shift == nullptr ? 0.0f : row_shift[row])));
}

/// A warp's 16 rows of queries as weights 2^(q log2(e) + R - top) of a read-out, in A fragments.
/// top: each row's largest exponent. den: the quad's part of the weights times the normaliser.
template <int kPanels>
struct Queries {
  uint32_t a[4 * kPanels][4];
  float top[2], den[2];

  __device__ void Weigh(uint32_t tile, const Gauges& gauges, int warp) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    top[0] = top[1] = 2.0f * kEmptyMax;
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) {
      LoadFragment(a[s], tile, warp, s);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 r = *reinterpret_cast<const float2*>(gauges.r + 16 * s + 8 * half + 2 * t);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          a[s][2 * half + i] = Saturate2(a[s][2 * half + i]);
          const float2 q = Unpack(a[s][2 * half + i]);
          top[i] = fmaxf(top[i], fmaxf(fmaf(q.x, kLog2E, r.x), fmaf(q.y, kLog2E, r.y)));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 2));
      den[i] = 0.0f;
    }
#pragma unroll
    for (int s = 0; s < 4 * kPanels; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 r = *reinterpret_cast<const float2*>(gauges.r + 16 * s + 8 * half + 2 * t);
        const float2 c = *reinterpret_cast<const float2*>(gauges.norm + 16 * s + 8 * half + 2 * t);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 q = Unpack(a[s][2 * half + i]);
          a[s][2 * half + i] =
              Pack(Exp2(fmaf(q.x, kLog2E, r.x) - top[i]), Exp2(fmaf(q.y, kLog2E, r.y) - top[i]));
          const float2 weight = Unpack(a[s][2 * half + i]);
          den[i] = fmaf(weight.x, c.x, fmaf(weight.y, c.y, den[i]));
        }
      }
    }
  }
};

/// Turns the window's rows of one panel of keys into weights 2^(x - R), bf16, rows outside as
/// zeros, where x = key log2(e) - row_shift[row], less the decay. Weights times row_extra (null: 1)
/// add to the normaliser. Returns the column's gauge and normaliser after the window; `grows` if a
/// key grows too much within it. By a warpgroup; `panel` counts from the tiles' first.
template <bool kReverse, bool kGuard>
__device__ OwnFeature WeighPanel(const unsigned char* keys, unsigned char* weights, int panel,
                                 const Window& window, float decay, const float* row_shift,
                                 const float* row_extra, const Gauges& gauges,
                                 const OwnFeature& own, bool* grows) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int rows = thread % 16, group = 8 * panel + thread / 16;
  uint32_t pairs[4][4];  // of the rows' keys
  float shift[4], top[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) top[c] = kEmptyMax;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = rows + 16 * i;
    const bool live = window.Holds(row);
    shift[i] = decay * window.Step<kReverse>(row) + (row_shift == nullptr ? 0.0f : row_shift[row]);
    const uint4 packed = *reinterpret_cast<const uint4*>(keys + ChunkOffset(row, group));
    pairs[i][0] = packed.x, pairs[i][1] = packed.y, pairs[i][2] = packed.z, pairs[i][3] = packed.w;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      pairs[i][c] = live ? Saturate2(pairs[i][c]) : kNoKeys;
      const float2 two = Unpack(pairs[i][c]);
      top[2 * c] = fmaxf(top[2 * c], fmaf(two.x, kLog2E, -shift[i]));
      top[2 * c + 1] = fmaxf(top[2 * c + 1], fmaf(two.y, kLog2E, -shift[i]));
    }
  }
  const float largest = ReduceColumns(top, [](float a, float b) { return fmaxf(a, b); });
  const float r = fmaxf(own.m, largest);
  const float shrink = Exp2(own.m - r), norm = own.c * shrink;
  const int column = OwnColumn() + 64 * panel;
  if (threadIdx.x % 2 == 0) {
    gauges.r[column] = r;
    gauges.shrink[column] = shrink;
    gauges.norm[column] = norm;
    if (kGuard) {
      const int row = kReverse ? window.end - 1 : window.begin;
      const float start = KeyExponent<kReverse>(keys, window, row, column, decay, row_shift);
      // NaN does not grow; nor does one row, or a walk would never end.
      *grows |= window.end - window.begin > 1 && r - fmaxf(own.m, start) > kMaxGrowth;
    }
  }
  __syncwarp();
  const float4 r0 = *reinterpret_cast<const float4*>(gauges.r + group * 8);
  const float4 r1 = *reinterpret_cast<const float4*>(gauges.r + group * 8 + 4);
  const float gauge[8] = {r0.x, r0.y, r0.z, r0.w, r1.x, r1.y, r1.z, r1.w};
  float sum[8] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = rows + 16 * i;
    const float extra = row_extra == nullptr ? 1.0f : window.Holds(row) ? row_extra[row] : 0.0f;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float2 key = Unpack(pairs[i][c]);
      pairs[i][c] = Pack(Exp2(fmaf(key.x, kLog2E, -shift[i]) - gauge[2 * c]),
                         Exp2(fmaf(key.y, kLog2E, -shift[i]) - gauge[2 * c + 1]));
      const float2 two = Unpack(pairs[i][c]);
      sum[2 * c] = row_extra == nullptr ? sum[2 * c] + two.x : fmaf(two.x, extra, sum[2 * c]);
      sum[2 * c + 1] =
          row_extra == nullptr ? sum[2 * c + 1] + two.y : fmaf(two.y, extra, sum[2 * c + 1]);
    }
    *reinterpret_cast<uint4*>(weights + ChunkOffset(row, group)) =
        make_uint4(pairs[i][0], pairs[i][1], pairs[i][2], pairs[i][3]);
  }
  const float total = ReduceColumns(sum, [](float a, float b) { return a + b; });
  OwnFeature next;
  next.c = norm + total;
  next.m = r + decay * static_cast<float>(window.end - window.begin);
  return next;
}

/// A tile of keys, by one warpgroup. Returns whether the window grows too much; then nothing but
/// shared memory changed. With kGuard every thread has read the keys on return.
template <bool kReverse, bool kGuard, int kPanels>
__device__ bool WeighKeys(const unsigned char* keys, unsigned char* weights, const Window& window,
                          float decay, const float* row_shift, const float* row_extra,
                          const Gauges& gauges, OwnFeature (&own)[kPanels]) {
  bool grows = false;
  OwnFeature next[kPanels];
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    next[i] = WeighPanel<kReverse, kGuard>(keys, weights, i, window, decay, row_shift, row_extra,
                                           gauges, own[i], &grows);
  }
  FenceProxy();
  if (kGuard && WarpgroupAny(kWeigherBarrier, grows)) return true;
#pragma unroll
  for (int i = 0; i < kPanels; ++i) own[i] = next[i];
  return false;
}

/// The longest window from where `window` starts (in scan order) that does not grow too much.
/// Slow: one thread walks one column.
template <bool kReverse, int kPanels>
__device__ Window ShrinkWindow(const unsigned char* keys, const Window& window, float decay,
                               const float* row_shift, const OwnFeature (&own)[kPanels],
                               int* shared_rows) {
  const int count = window.end - window.begin;
  if (threadIdx.x == 0) *shared_rows = count;
  WarpgroupBarrier(kWeigherBarrier);
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    float start = 0.0f;
    for (int i = 0; i < count; ++i) {
      const int row = kReverse ? window.end - 1 - i : window.begin + i;
      const float x =
          KeyExponent<kReverse>(keys, window, row, OwnColumn() + 64 * panel, decay, row_shift);
      if (i == 0) start = fmaxf(own[panel].m, x);
      // A little earlier than the guard, whatever the rounding: the next window passes it.
      if (i > 0 && x - start > kMaxGrowth - 1.0f) {
        atomicMin(shared_rows, i);
        break;
      }
    }
  }
  WarpgroupBarrier(kWeigherBarrier);
  const int rows = *shared_rows;
  WarpgroupBarrier(kWeigherBarrier);
  return kReverse ? Window{window.end - rows, window.end}
                  : Window{window.begin, window.begin + rows};
}

template <class Visit>
__device__ void ForEachPair(int warp, const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    visit(16 * warp + lane / 4, 8 * j + 2 * (lane % 4), 4 * j);
    visit(16 * warp + lane / 4 + 8, 8 * j + 2 * (lane % 4), 4 * j + 2);
  }
}

__device__ inline void LoadStateTile(const float* state, const StateLayout& l, int row0,
                                     int column0, int warp, float (&s)[32]) {
  ForEachPair(warp, [&](int row, int column, int i) {
    const float* at = state + (row0 + row) * l.values + column0 + column;
    s[i] = state == nullptr ? 0.0f : at[0];
    s[i + 1] = state == nullptr ? 0.0f : at[1];
  });
}

__device__ inline void StoreStateTile(float* state, const StateLayout& l, int row0, int column0,
                                      int warp, const float (&s)[32]) {
  ForEachPair(warp, [&](int row, int column, int i) {
    float* at = state + (row0 + row) * l.values + column0 + column;
    at[0] = s[i];
    at[1] = s[i + 1];
  });
}

__device__ inline OwnFeature LoadFeature(const float* state, const StateLayout& l, int column) {
  OwnFeature own;
  if (state == nullptr) return own;
  own.m = state[l.m + column];
  own.m = own.m <= kEmptyMax ? kEmptyMax : own.m * kLog2E;
  own.c = state[l.c + column];
  return own;
}

__device__ inline void StoreFeature(float* state, const StateLayout& l, int column,
                                    const OwnFeature& own) {
  if (threadIdx.x % 2 != 0) return;
  state[l.m + column] = own.m <= kEmptyMax ? kEmptyMax : own.m * kLn2;
  state[l.c + column] = own.c;
}

/// The state a walk starts a span from, or null.
__device__ inline const float* StartOf(const WalkArgs& p, const DeviceItem& item, int span,
                                       int head, bool reverse) {
  if (item.slot >= 0) {
    return p.states + (static_cast<int64_t>(item.slot) * p.heads + head) * p.layout.size;
  }
  const SpanEdges edges = p.plan.edges[span];
  const int edge = reverse ? edges.last : edges.first;
  if (p.edge_states == nullptr || edge < 0) return nullptr;
  return p.edge_states + (static_cast<int64_t>(edge) * p.heads + head) * p.layout.size;
}

#endif  // ELA_HOPPER_CODE

}  // namespace ela::kernels::cuda::hopper
