// Which tiles of queries and keys meet, found on the device before the Hopper kernels run. A tile
// of queries meets the tiles of keys within its span; within the span of rows that are in order of
// document and position every tile is met, and other rows are right too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/context.h"
#include "kernels/softmax_attention/hopper.h"

namespace ela::kernels::cuda::softmax {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr int kKeyRows = 128;  // of a tile of keys

/// A row's document and position. Rows past the end are of documents that meet nothing.
struct alignas(8) Place {
  int32_t document, position;
};

/// What the rows of a tile span.
struct alignas(16) Range {
  int32_t first_document, last_document, first_position, last_position;
  int64_t first, last;  // in order of document, then position: document 2^32 + position
};

/// Tiles of the other side within [begin, end): all of them, where they are of keys.
struct Span {
  int32_t begin, end, count;

  __host__ __device__ bool Holds(int tile) const { return begin <= tile && tile < end; }
};

/// Rows of one side, in tiles.
struct Tiles {
  const Place* places;         // [count * rows]
  const Range* ranges;         // [count]
  int32_t count, rows, total;  // tiles, rows of a tile, rows in all

  __host__ __device__ bool Complete(int tile) const { return (tile + 1) * rows <= total; }
};

/// Where every query of a tile meets every key.
__device__ inline bool AllMeet(const Tiles& queries, int query_tile, const Tiles& keys,
                               int key_tile, bool causal) {
  if (!queries.Complete(query_tile) || !keys.Complete(key_tile)) return false;
  const Range q = queries.ranges[query_tile], k = keys.ranges[key_tile];
  return q.first_document == k.last_document && q.last_document == k.first_document &&
         q.first_document == q.last_document && (!causal || k.last_position <= q.first_position);
}

/// In scratch memory, a multiple of `together` tiles; `queries`: which side, for what rows past the
/// end meet.
Tiles MakeTiles(const Context& ctx, const RowPlaces& places, int rows, bool queries,
                int together = 1);

/// Of each tile of queries. In scratch memory.
Span* FindSpans(const Context& ctx, const Tiles& queries, const Tiles& keys, bool causal);

/// Of each tile of keys: tiles of queries whose spans hold it. In scratch memory.
Span* InvertSpans(const Context& ctx, const Span* spans, const Tiles& queries, const Tiles& keys);

}  // namespace ela::kernels::cuda::softmax
