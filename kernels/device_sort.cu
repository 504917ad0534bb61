// Least digit first. A pass counts the digits of each tile, turns the counts into first places by
// one scan over (digit, tile), and lets one warp a tile hand out the places in order.
#include "kernels/device_code.cuh"
#include "kernels/device_sort.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;
constexpr int64_t kSmallestTile = 512;
constexpr int64_t kMostTiles = 256;

struct Pass {
  const int32_t* keys;
  const int32_t* from;  // order before the pass; null: 0, 1, ...
  int64_t n, tile;
  int tiles, digits, shift;
};

__device__ int DigitOf(const Pass& p, int64_t i, int32_t* index) {
  *index = p.from == nullptr ? static_cast<int32_t>(i) : p.from[i];
  return (p.keys[*index] >> p.shift) & (kDigits - 1);
}

/// counts [digits][tiles].
__global__ void CountDigits(int32_t* counts, Pass p) {
  __shared__ int32_t count[kDigits];
  for (int d = static_cast<int>(threadIdx.x); d < p.digits; d += kBlock) count[d] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * p.tile, end = min(p.n, begin + p.tile);
  for (int64_t i = begin + threadIdx.x; i < end; i += kBlock) {
    int32_t index;
    atomicAdd(&count[DigitOf(p, i, &index)], 1);  // of integers: any order gives the same
  }
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < p.digits; d += kBlock) {
    counts[d * p.tiles + blockIdx.x] = count[d];
  }
}

/// Exclusive sums in place, by one block: a thread a contiguous part.
__global__ void ScanCounts(int32_t* counts, int n) {
  __shared__ int32_t sums[1024];
  const int t = static_cast<int>(threadIdx.x), part = (n + 1023) / 1024;
  const int begin = min(n, t * part), end = min(n, begin + part);
  int32_t sum = 0;
  for (int i = begin; i < end; ++i) sum += counts[i];
  sums[t] = sum;
  __syncthreads();
  for (int step = 1; step < 1024; step *= 2) {
    const int32_t before = t >= step ? sums[t - step] : 0;
    __syncthreads();
    sums[t] += before;
    __syncthreads();
  }
  int32_t place = sums[t] - sum;
  for (int i = begin; i < end; ++i) {
    const int32_t count = counts[i];
    counts[i] = place;
    place += count;
  }
}

__global__ void PlaceTiles(int32_t* to, const int32_t* places, Pass p) {
  __shared__ int32_t next[kDigits];
  const int lane = static_cast<int>(threadIdx.x);
  for (int d = lane; d < p.digits; d += kWarp) next[d] = places[d * p.tiles + blockIdx.x];
  __syncwarp();
  const int64_t begin = blockIdx.x * p.tile, end = min(p.n, begin + p.tile);
  for (int64_t base = begin; base < end; base += kWarp) {
    const bool valid = base + lane < end;
    int32_t index = 0;
    const int digit = valid ? DigitOf(p, base + lane, &index) : -1;
    const unsigned same = __match_any_sync(kAllLanes, digit);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (valid) to[next[digit] + rank] = index;
    __syncwarp();
    if (valid && rank == 0) next[digit] += __popc(same);
    __syncwarp();
  }
}

__global__ void CheckKeys(const int32_t* keys, int64_t n, int64_t num_keys) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= n) return;
  ELA_DEVICE_CHECK(keys[i] >= 0 && keys[i] < num_keys, ": id %d at row %lld of %lld\n", keys[i],
                   static_cast<long long>(i), static_cast<long long>(num_keys));
}

__global__ void CountAll(unsigned long long* counts, const int32_t* keys, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int key = i < n ? keys[i] : -1;
  const unsigned same = __match_any_sync(kAllLanes, key);
  const bool first = (same & ((1u << (threadIdx.x % kWarp)) - 1)) == 0;
  if (key >= 0 && first) atomicAdd(&counts[key], static_cast<unsigned long long>(__popc(same)));
}

void RunPass(const Context& ctx, int32_t* to, int32_t* counts, const Pass& pass) {
  const unsigned tiles = GridSize(pass.tiles);
  CountDigits<<<tiles, kBlock, 0, StreamOf(ctx)>>>(counts, pass);
  ScanCounts<<<1, 1024, 0, StreamOf(ctx)>>>(counts, pass.digits * pass.tiles);
  PlaceTiles<<<tiles, kWarp, 0, StreamOf(ctx)>>>(to, counts, pass);
  CheckLaunch("StableSort");
}

}  // namespace

void StableSort(const Context& ctx, int32_t* order, const int32_t* keys, int64_t n,
                int64_t num_keys) {
  if (n == 0) return;
  ELA_CHECK(n <= INT32_MAX && num_keys <= INT32_MAX, "%lld keys", static_cast<long long>(n));
  CheckKeys<<<GridSize(CeilDiv(n, kBlock)), kBlock, 0, StreamOf(ctx)>>>(keys, n, num_keys);
  const ArenaScope scope(ctx.scratch);
  Pass pass;
  pass.keys = keys;
  pass.from = nullptr;
  pass.n = n;
  pass.tile = std::max(kSmallestTile, CeilDiv(CeilDiv(n, kMostTiles), kWarp) * kWarp);
  pass.tiles = static_cast<int>(CeilDiv(n, pass.tile));
  pass.digits = static_cast<int>(std::min<int64_t>(kDigits, num_keys));
  int32_t* counts = TakeScratch<int32_t>(ctx, int64_t{pass.digits} * pass.tiles);
  int passes = 1;
  while (num_keys > int64_t{1} << (passes * kDigitBits)) ++passes;
  int32_t* other = passes > 1 ? TakeScratch<int32_t>(ctx, n) : nullptr;
  for (int i = 0; i < passes; ++i) {
    int32_t* to = (passes - i) % 2 == 1 ? order : other;  // the last pass ends in `order`
    pass.shift = i * kDigitBits;
    RunPass(ctx, to, counts, pass);
    pass.from = to;
  }
}

void CountKeys(const Context& ctx, int64_t* counts, const int32_t* keys, int64_t n,
               int64_t num_keys) {
  ELA_CUDA_CHECK(
      cudaMemsetAsync(counts, 0, static_cast<size_t>(num_keys) * sizeof(int64_t), StreamOf(ctx)));
  if (n == 0) return;
  CountAll<<<GridSize(CeilDiv(n, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
      reinterpret_cast<unsigned long long*>(counts), keys, n);
  CheckLaunch("CountKeys");
}

}  // namespace ela::kernels::cuda
