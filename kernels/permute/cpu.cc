// x, y and rows are float or bf16, each on its own. Sorting is a counting sort by one thread: it
// moves 12 bytes a slot, where the rows that follow it move thousands.
#include <cstring>
#include <vector>

#include "kernels/parallel.h"
#include "kernels/permute/permute.h"
#include "kernels/rows.h"

namespace ela::kernels::cpu {

void SortSlots(const Context& ctx, Tensor slot_of_row, Tensor row_of_slot, Tensor counts,
               Tensor experts) {
  const int64_t slots = experts.numel(), num_experts = counts.dim(0);
  ELA_CHECK(slot_of_row.numel() == slots && row_of_slot.numel() == slots && experts.dense() &&
                slot_of_row.dense() && row_of_slot.dense(),
            "%lld slots", static_cast<long long>(slots));
  const int32_t* expert = experts.as<int32_t>();
  int64_t* count = counts.as<int64_t>();
  std::fill_n(count, num_experts, 0);
  for (int64_t s = 0; s < slots; ++s) {
    ELA_CHECK(expert[s] >= 0 && expert[s] < num_experts, "expert %d of %lld", expert[s],
              static_cast<long long>(num_experts));
    ++count[expert[s]];
  }
  std::vector<int64_t> next(static_cast<size_t>(num_experts));  // the next row of each expert
  for (size_t e = 1; e < next.size(); ++e) next[e] = next[e - 1] + count[e - 1];
  for (int64_t s = 0; s < slots; ++s) {
    const int64_t row = next[static_cast<size_t>(expert[s])]++;
    slot_of_row.as<int32_t>()[row] = static_cast<int32_t>(s);
    row_of_slot.as<int32_t>()[s] = static_cast<int32_t>(row);
  }
}

void GatherRows(const Context& ctx, Tensor y, Tensor x, Tensor index, int64_t divisor) {
  const int64_t rows = index.dim(0), n = y.row_numel();
  CheckShape("y", y, rows, n);
  if (rows == 0) return;
  CheckShape("x", x, x.dim(0), n);
  const int32_t* source = index.as<int32_t>();
  ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, BufferFloats(x) + BufferFloats(y));
  ParallelBlocks(ctx, rows, RowsPerBlock(n), [&](int64_t begin, int64_t end) {
    float* x_buffer = buffers.Get();
    float* y_buffer = x_buffer + BufferFloats(x);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = source[r] / divisor;
      ELA_CHECK(row >= 0 && row < x.dim(0), "row %lld of %lld", static_cast<long long>(row),
                static_cast<long long>(x.dim(0)));
      const float* in = ReadRow(x, row, x_buffer);
      float* out = RowTarget(y, r, y_buffer);
      std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
      WriteRow(y, r, out);
    }
  });
}

void CombineRows(const Context& ctx, Tensor y, Tensor rows, Tensor row_of_slot, Tensor added) {
  const int64_t tokens = row_of_slot.dim(0), n = y.row_numel();
  CheckShape("y", y, tokens, n);
  if (tokens == 0) return;
  const int64_t choices = row_of_slot.row_numel();
  CheckShape("rows", rows, rows.dim(0), n);
  if (!added.empty()) CheckShape("added", added, tokens, n);
  ELA_CHECK(row_of_slot.dense());
  const int32_t* row_of = row_of_slot.as<int32_t>();
  ArenaScope scope(ctx.scratch);
  // One for all that is read: a row at a time.
  const int64_t in_floats = std::max(BufferFloats(rows), added.empty() ? 0 : BufferFloats(added));
  const ThreadBuffers buffers(ctx, in_floats + BufferFloats(y));
  ParallelBlocks(ctx, tokens, RowsPerBlock(n), [&](int64_t begin, int64_t end) {
    float* in_buffer = buffers.Get();
    float* y_buffer = in_buffer + in_floats;
    for (int64_t t = begin; t < end; ++t) {
      float* out = RowTarget(y, t, y_buffer);
      std::memset(out, 0, static_cast<size_t>(n) * sizeof(float));
      for (int64_t j = 0; j < choices; ++j) {
        const int64_t row = row_of[t * choices + j];
        ELA_CHECK(row >= 0 && row < rows.dim(0), "row %lld of %lld", static_cast<long long>(row),
                  static_cast<long long>(rows.dim(0)));
        const float* in = ReadRow(rows, row, in_buffer);
        for (int64_t i = 0; i < n; ++i) out[i] += in[i];
      }
      if (!added.empty()) {
        const float* in = ReadRow(added, t, in_buffer);
        for (int64_t i = 0; i < n; ++i) out[i] += in[i];
      }
      WriteRow(y, t, out);
    }
  });
}

}  // namespace ela::kernels::cpu
