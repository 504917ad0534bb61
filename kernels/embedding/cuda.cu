// x and table, dx and ids: rows of d elements moved once. The gradient sorts the tokens by id
// (stable) and sums runs of equal ids: tiles of 64 sorted rows first, then what a run left in
// several tiles, in order. Every row of dtable is added to once, so nothing is atomic.
#include "kernels/device_code.cuh"
#include "kernels/device_sort.h"
#include "kernels/embedding/embedding.h"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kTile = 64;

template <class T, int N>
__global__ void TakeRows(Rows<T> x, const int32_t* ids, Rows<T> table, int64_t rows, int d,
                         int64_t vocabulary) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int32_t id = ids[row];
  ELA_DEVICE_CHECK(id >= 0 && id < vocabulary, ": token id %d at row %lld, vocabulary %lld\n", id,
                   static_cast<long long>(row), static_cast<long long>(vocabulary));
  for (int i = static_cast<int>(threadIdx.x) % kWarp * N; i < d; i += kWarp * N) {
    float v[N];
    Load(v, table[id] + i);
    StoreAll(x[row] + i, v);
  }
}

struct Tiles {
  const int32_t* ids;    // [T]
  const int32_t* order;  // [T] sorted by (id, row)
  int64_t rows;
  int d;
  float* heads;  // [tiles, d] sums of runs that began in an earlier tile
  float* tails;  // [tiles, d] sums of runs that began here and go on
  __device__ int32_t IdAt(int64_t i) const { return ids[order[i]]; }
};

/// Block (tile, part of the columns); a thread a column.
template <class T>
__global__ void SumTiles(Rows<float> dtable, Rows<T> dx, Tiles t) {
  const int column = static_cast<int>(blockIdx.y) * kBlock + static_cast<int>(threadIdx.x);
  if (column >= t.d) return;
  const int64_t begin = blockIdx.x * kTile, end = min(t.rows, begin + kTile);
  bool from_before = begin > 0 && t.IdAt(begin - 1) == t.IdAt(begin);
  float sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t row = t.order[i], id = t.ids[row];
    sum += ToFloat(dx[row][column]);
    const bool goes_on = i + 1 < t.rows && t.IdAt(i + 1) == id;
    if (goes_on && i + 1 < end) continue;
    if (from_before) {
      t.heads[static_cast<int64_t>(blockIdx.x) * t.d + column] = sum;
    } else if (goes_on) {
      t.tails[static_cast<int64_t>(blockIdx.x) * t.d + column] = sum;
    } else {
      dtable[id][column] += sum;
    }
    from_before = false;
    sum = 0;
  }
}

/// The runs that begin in a tile and go on beyond it.
__global__ void AddLongRuns(Rows<float> dtable, Tiles t) {
  const int column = static_cast<int>(blockIdx.y) * kBlock + static_cast<int>(threadIdx.x);
  const int64_t begin = blockIdx.x * kTile, end = begin + kTile;
  if (column >= t.d || end >= t.rows) return;
  const int32_t id = t.IdAt(end - 1);
  const bool began_before = begin > 0 && t.IdAt(begin) == id && t.IdAt(begin - 1) == id;
  if (t.IdAt(end) != id || began_before) return;
  float sum = t.tails[static_cast<int64_t>(blockIdx.x) * t.d + column];
  for (int64_t tile = blockIdx.x + 1; tile * kTile < t.rows && t.IdAt(tile * kTile) == id; ++tile) {
    sum += t.heads[tile * t.d + column];
  }
  dtable[id][column] += sum;
}

}  // namespace

void EmbeddingForward(const Context& ctx, Tensor x, Tensor ids, Tensor table) {
  const int64_t rows = ids.dim(0), d = table.row_numel();
  CheckShape("x", x, rows, d);
  if (rows == 0) return;
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        TakeRows<T, n><<<GridSize(CeilDiv(rows, kBlock / kWarp)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(x), ids.as<int32_t>(), Rows<T>(table), rows, static_cast<int>(d), table.dim(0));
      },
      x, table);
  CheckLaunch("TakeRows");
}

void EmbeddingBackward(const Context& ctx, Tensor dtable, Tensor dx, Tensor ids) {
  const int64_t rows = ids.dim(0), d = dtable.row_numel();
  CheckShape("dx", dx, rows, d);
  if (rows == 0) return;
  const ArenaScope scope(ctx.scratch);
  const int64_t tiles = CeilDiv(rows, kTile);
  int32_t* order = TakeScratch<int32_t>(ctx, rows);
  StableSort(ctx, order, ids.as<int32_t>(), rows, dtable.dim(0));
  Tiles t;
  t.ids = ids.as<int32_t>();
  t.order = order;
  t.rows = rows;
  t.d = static_cast<int>(d);
  t.heads = TakeScratch<float>(ctx, tiles * d);
  t.tails = TakeScratch<float>(ctx, tiles * d);
  const dim3 grid(GridSize(tiles), GridSize(CeilDiv(d, kBlock)));
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        SumTiles<T><<<grid, kBlock, 0, StreamOf(ctx)>>>(Rows<float>(dtable), Rows<T>(dx), t);
      },
      dx);
  AddLongRuns<<<grid, kBlock, 0, StreamOf(ctx)>>>(Rows<float>(dtable), t);
  CheckLaunch("EmbeddingBackward");
}

}  // namespace ela::kernels::cuda
