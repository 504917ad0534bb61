// x, y and rows are of one type. A row moves once; the combine sums its K rows in the order of the
// slots.
#include "kernels/device_code.cuh"
#include "kernels/device_sort.h"
#include "kernels/permute/permute.h"

namespace ela::kernels::cuda {
namespace {

__global__ void Invert(int32_t* inverse, const int32_t* order, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i < n) inverse[order[i]] = static_cast<int32_t>(i);
}

/// Lanes of a warp that share a row: rows of one number must not take a warp each.
int LanesFor(int64_t vectors) {
  int lanes = 1;
  while (lanes < kWarp && lanes < vectors) lanes *= 2;
  return lanes;
}

template <class T, int N>
__global__ void Gather(Rows<T> y, Rows<T> x, const int32_t* index, int64_t rows, int64_t columns,
                       int64_t x_rows, int divisor, int lanes) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int64_t row = thread / lanes;
  if (row >= rows) return;
  const int64_t from = index[row] / divisor;
  ELA_DEVICE_CHECK(from >= 0 && from < x_rows, ": row %lld of %lld\n", static_cast<long long>(from),
                   static_cast<long long>(x_rows));
  for (int64_t i = thread % lanes * N; i < columns; i += lanes * N) {
    float v[N];
    Load(v, x[from] + i);
    StoreAll(y[row] + i, v);
  }
}

template <class T, int N>
__global__ void Combine(Rows<T> y, Rows<T> rows, const int32_t* row_of_slot, Rows<T> added,
                        int64_t tokens, int64_t columns, int64_t num_rows, int choices, int lanes) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int64_t token = thread / lanes;
  if (token >= tokens) return;
  for (int64_t i = thread % lanes * N; i < columns; i += lanes * N) {
    float sum[N] = {};
    for (int j = 0; j < choices; ++j) {
      const int64_t row = row_of_slot[token * choices + j];
      ELA_DEVICE_CHECK(row >= 0 && row < num_rows, ": row %lld of %lld\n",
                       static_cast<long long>(row), static_cast<long long>(num_rows));
      float v[N];
      Load(v, rows[row] + i);
#pragma unroll
      for (int l = 0; l < N; ++l) sum[l] += v[l];
    }
    if (added.data != nullptr) {
      float v[N];
      Load(v, added[token] + i);
#pragma unroll
      for (int l = 0; l < N; ++l) sum[l] += v[l];
    }
    StoreAll(y[token] + i, sum);
  }
}

}  // namespace

void SortSlots(const Context& ctx, Tensor slot_of_row, Tensor row_of_slot, Tensor counts,
               Tensor experts) {
  const int64_t slots = experts.numel(), num_experts = counts.dim(0);
  ELA_CHECK(slot_of_row.numel() == slots && row_of_slot.numel() == slots && experts.dense() &&
                slot_of_row.dense() && row_of_slot.dense(),
            "%lld slots", static_cast<long long>(slots));
  CountKeys(ctx, counts.as<int64_t>(), experts.as<int32_t>(), slots, num_experts);
  if (slots == 0) return;
  StableSort(ctx, slot_of_row.as<int32_t>(), experts.as<int32_t>(), slots, num_experts);
  Invert<<<GridSize(CeilDiv(slots, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
      row_of_slot.as<int32_t>(), slot_of_row.as<int32_t>(), slots);
  CheckLaunch("Invert");
}

void GatherRows(const Context& ctx, Tensor y, Tensor x, Tensor index, int64_t divisor) {
  const int64_t rows = index.dim(0), n = y.row_numel();
  CheckShape("y", y, rows, n);
  if (rows == 0 || n == 0) return;
  CheckShape("x", x, x.dim(0), n);
  WithVectors(
      [&](auto element, auto width) {
        using T = decltype(element);
        const int lanes = LanesFor(n / width);
        Gather<T, width><<<GridSize(CeilDiv(rows * lanes, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(y), Rows<T>(x), index.as<int32_t>(), rows, n, x.dim(0),
            static_cast<int>(divisor), lanes);
      },
      y, x);
  CheckLaunch("Gather");
}

void CombineRows(const Context& ctx, Tensor y, Tensor rows, Tensor row_of_slot, Tensor added) {
  const int64_t tokens = row_of_slot.dim(0), n = y.row_numel();
  CheckShape("y", y, tokens, n);
  if (tokens == 0 || n == 0) return;
  const int64_t choices = row_of_slot.row_numel();
  CheckShape("rows", rows, rows.dim(0), n);
  if (!added.empty()) CheckShape("added", added, tokens, n);
  ELA_CHECK(row_of_slot.dense());
  const Tensor added_rows = added.empty() ? rows : added;  // of some alignment
  WithVectors(
      [&](auto element, auto width) {
        using T = decltype(element);
        const int lanes = LanesFor(n / width);
        Combine<T, width><<<GridSize(CeilDiv(tokens * lanes, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(y), Rows<T>(rows), row_of_slot.as<int32_t>(),
            added.empty() ? Rows<T>() : Rows<T>(added), tokens, n, rows.dim(0),
            static_cast<int>(choices), lanes);
      },
      y, rows, added_rows);
  CheckLaunch("Combine");
}

}  // namespace ela::kernels::cuda
