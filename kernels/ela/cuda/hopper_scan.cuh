// What the Hopper scans share: how a block walks its item, and the state's way to and from memory.
//
// A block is kPanels warpgroups (head dim 64 kPanels), walks an item in chunks of at most 64 rows
// that never cross a span, and keeps a state S [D][Dv] in registers. All exponents are base 2.
//
// Exactness: a chunk has one gauge R, the state's or, if keys exceed that by much, the largest key.
// Where R grows by more than kMaxGrowth within the chunk, earlier rows would lose what they saw;
// then only the rows before the growth are taken as a window, and the chunk is walked again from
// there. A window of one row is always exact, so any input is.
#pragma once

#include "kernels/ela/cuda/scan.cuh"
#include "kernels/hopper.cuh"

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
  bool decays;
};

#ifdef ELA_HOPPER_CODE

/// The chunks of an item, in scan order. Reads global memory only where a span ends.
struct Walk {
  const int64_t* span_begin;
  int item_begin, item_end;  // rows of a tensor map are 32-bit
  int row = 0;               // first row of the chunk
  int edge = 0;              // where the next chunk starts (reverse: ends)
  int limit = 0;             // where the span or the item ends in scan order
  int span;
  int count = 0;       // rows of the chunk
  bool first = false;  // of its span, or of the item

  __device__ Walk(const DevicePlan& plan, const DeviceItem& item, bool reverse)
      : span_begin(plan.span_begin),
        item_begin(static_cast<int>(item.begin)),
        item_end(static_cast<int>(item.end)),
        span(item.span) {
    edge = reverse ? item_end : item_begin;
    if (reverse) {
      while (Begin(span + 1) < item_end) ++span;
    }
    limit = reverse ? max(Begin(span), item_begin) : min(Begin(span + 1), item_end);
    first = true;
  }
  __device__ int Begin(int of) const { return static_cast<int>(span_begin[of]); }
  /// False past the last chunk.
  template <bool kReverse>
  __device__ bool Next() {
    first = edge == (kReverse ? item_end : item_begin);
    if constexpr (kReverse) {
      if (edge <= item_begin) return false;
      while (limit >= edge) {
        --span;
        limit = max(Begin(span), item_begin);
        first = true;
      }
      row = max(limit, edge - kTileRows);
      count = edge - row;
      edge = row;
    } else {
      if (edge >= item_end) return false;
      while (limit <= edge) {
        ++span;
        limit = min(Begin(span + 1), item_end);
        first = true;
      }
      row = edge;
      edge = min(limit, row + kTileRows);
      count = edge - row;
    }
    return true;
  }
};

/// A chunk of a walk, for all warps of a block; row < 0: none, the walk is over.
struct Chunk {
  int row = -1;
  int count = 0, span = 0;
  bool first = false;  // of its span, or of the item
};
static_assert(sizeof(Chunk) == 16 && sizeof(Walk) <= 64);

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

/// Per feature, in shared memory: a state's gauge and normaliser.
struct Gauges {
  float* r;
  float* norm;
};

/// A thread's running gauge and normaliser, of one feature.
struct OwnFeature {
  float m = kEmptyMax, c = 0.0f;
};

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
