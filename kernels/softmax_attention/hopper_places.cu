#include <algorithm>

#include "kernels/device_code.cuh"
#include "kernels/hopper.h"
#include "kernels/softmax_attention/hopper_places.h"

namespace ela::kernels::cuda::softmax {
namespace {

constexpr int kWarpsPerBlock = 8;

__device__ int LaneOf() { return static_cast<int>(threadIdx.x) % kWarp; }
/// The warp's own tile.
__device__ int TileOf() {
  return static_cast<int>(blockIdx.x) * kWarpsPerBlock + static_cast<int>(threadIdx.x) / kWarp;
}

__global__ void PackPlaces(Place* packed, Range* ranges, RowPlaces from, int tiles, int rows,
                           int32_t absent) {
  const int tile = TileOf();
  if (tile >= tiles) return;
  Range range = {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN};
  for (int i = LaneOf(); i < rows; i += kWarp) {
    const int64_t row = static_cast<int64_t>(tile) * rows + i;
    const bool there = row < from.count;
    const Place place = {there ? from.document[row] : absent, there ? from.position[row] : 0};
    packed[row] = place;
    if (!there) continue;
    range.first_document = min(range.first_document, place.document);
    range.last_document = max(range.last_document, place.document);
    range.first_position = min(range.first_position, place.position);
    range.last_position = max(range.last_position, place.position);
    const int64_t order = (int64_t{place.document} << 32) + place.position;
    range.first = min(range.first, order);
    range.last = max(range.last, order);
  }
  range = {__reduce_min_sync(kAllLanes, range.first_document),
           __reduce_max_sync(kAllLanes, range.last_document),
           __reduce_min_sync(kAllLanes, range.first_position),
           __reduce_max_sync(kAllLanes, range.last_position),
           range.first,
           range.last};
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    range.first = min(range.first, __shfl_xor_sync(kAllLanes, range.first, offset));
    range.last = max(range.last, __shfl_xor_sync(kAllLanes, range.last, offset));
  }
  if (LaneOf() == 0) ranges[tile] = range;
}

/// The span of the tiles in [0, count) for which holds(tile), and how many they are; by a warp.
template <class Holds>
__device__ Span SpanOf(int count, const Holds& holds) {
  Span span = {INT32_MAX, 0, 0};
  for (int tile = LaneOf(); tile < count; tile += kWarp) {
    if (!holds(tile)) continue;
    span.begin = min(span.begin, tile);
    span.end = tile + 1;
    ++span.count;
  }
  return {__reduce_min_sync(kAllLanes, span.begin), __reduce_max_sync(kAllLanes, span.end),
          __reduce_add_sync(kAllLanes, span.count)};
}

__global__ void SpansOfQueries(Span* spans, Tiles queries, Tiles keys, bool causal) {
  const int tile = TileOf();
  if (tile >= queries.count) return;
  const Range q = queries.ranges[tile];
  Span span = SpanOf(keys.count, [&](int other) {
    const Range k = keys.ranges[other];
    return q.first_document <= k.last_document && k.first_document <= q.last_document &&
           (!causal || (k.first_position <= q.last_position && k.first <= q.last));
  });
  span.count = max(span.end - span.begin, 0);
  if (LaneOf() == 0) spans[tile] = span;
}

__global__ void SpansOfKeys(Span* spans, const Span* of_queries, int queries, int keys) {
  const int tile = TileOf();
  if (tile >= keys) return;
  const Span span = SpanOf(queries, [&](int other) { return of_queries[other].Holds(tile); });
  if (LaneOf() == 0) spans[tile] = span;
}

unsigned Blocks(int tiles) { return GridSize(CeilDiv(tiles, kWarpsPerBlock)); }

bool HasPairs(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.data()) % 8 == 0 && x.stride() % 2 == 0;
}

}  // namespace

bool HopperApplies(std::initializer_list<Tensor> inputs, std::initializer_list<Tensor> outputs,
                   const SoftmaxAttentionConfig& config) {
  return (config.head_dim == 64 || config.head_dim == 128) &&
         std::all_of(inputs.begin(), inputs.end(), HasTensorMap) &&
         std::all_of(outputs.begin(), outputs.end(), HasPairs) && IsHopper();
}

Tiles MakeTiles(const Context& ctx, const RowPlaces& places, int rows, bool queries, int together) {
  const auto count =
      static_cast<int32_t>(CeilDiv(places.count, int64_t{rows} * together) * together);
  auto* packed = TakeScratch<Place>(ctx, int64_t{count} * rows);
  auto* ranges = TakeScratch<Range>(ctx, count);
  PackPlaces<<<Blocks(count), kWarpsPerBlock * kWarp, 0, StreamOf(ctx)>>>(
      packed, ranges, places, count, rows, queries ? INT32_MAX : INT32_MIN);
  CheckLaunch("PackPlaces");
  return {packed, ranges, count, rows, static_cast<int32_t>(places.count)};
}

Span* FindSpans(const Context& ctx, const Tiles& queries, const Tiles& keys, bool causal) {
  auto* spans = TakeScratch<Span>(ctx, queries.count);
  SpansOfQueries<<<Blocks(queries.count), kWarpsPerBlock * kWarp, 0, StreamOf(ctx)>>>(
      spans, queries, keys, causal);
  CheckLaunch("SpansOfQueries");
  return spans;
}

Span* InvertSpans(const Context& ctx, const Span* spans, const Tiles& queries, const Tiles& keys) {
  auto* inverse = TakeScratch<Span>(ctx, keys.count);
  SpansOfKeys<<<Blocks(keys.count), kWarpsPerBlock * kWarp, 0, StreamOf(ctx)>>>(
      inverse, spans, queries.count, keys.count);
  CheckLaunch("SpansOfKeys");
  return inverse;
}

}  // namespace ela::kernels::cuda::softmax
