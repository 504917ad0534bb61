#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/elementwise/elementwise.h"
#include "kernels/matrix.h"
#include "kernels/permute/permute.h"

namespace ela::kernels::reference {

void SortSlots(const Context& ctx, Tensor slot_of_row, Tensor row_of_slot, Tensor counts,
               Tensor experts) {
  const int32_t* expert = experts.as<int32_t>();
  std::vector<int32_t> slots(static_cast<size_t>(experts.numel()));
  std::iota(slots.begin(), slots.end(), 0);
  std::stable_sort(slots.begin(), slots.end(),
                   [&](int32_t a, int32_t b) { return expert[a] < expert[b]; });
  std::fill_n(counts.as<int64_t>(), counts.dim(0), 0);
  for (size_t row = 0; row < slots.size(); ++row) {
    slot_of_row.as<int32_t>()[row] = slots[row];
    row_of_slot.as<int32_t>()[slots[row]] = static_cast<int32_t>(row);
    ++counts.as<int64_t>()[expert[slots[row]]];
  }
}

void GatherRows(const Context& ctx, Tensor y_out, Tensor x_in, Tensor index, int64_t divisor) {
  const Matrix x(x_in);
  Matrix y(index.dim(0), x.columns());
  for (int64_t r = 0; r < y.rows(); ++r) {
    const int64_t source = index.as<int32_t>()[r] / divisor;
    for (int64_t i = 0; i < y.columns(); ++i) y(r, i) = x(source, i);
  }
  y.StoreTo(y_out);
}

void CombineRows(const Context& ctx, Tensor y_out, Tensor rows_in, Tensor row_of_slot,
                 Tensor added) {
  const Matrix rows(rows_in);
  const int64_t choices = row_of_slot.dim(1);
  Matrix y(row_of_slot.dim(0), y_out.row_numel());
  for (int64_t t = 0; t < y.rows(); ++t) {
    for (int64_t j = 0; j < choices; ++j) {
      const int64_t row = row_of_slot.as<int32_t>()[t * choices + j];
      for (int64_t i = 0; i < y.columns(); ++i) y(t, i) += rows(row, i);
    }
  }
  y.StoreTo(y_out);
  if (!added.empty()) Add(ctx, y_out, y_out, added);
}

}  // namespace ela::kernels::reference
