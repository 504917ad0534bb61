// The rows are sorted after all: the host sees the counts, and products of several rows are faster
// than several products.
#include "kernels/experts/experts.h"
#include "kernels/ops.h"

namespace ela::kernels::cpu {
namespace {

Tensor Taken(const Context& ctx, DType dtype, std::initializer_list<int64_t> shape) {
  size_t bytes = SizeOf(dtype);
  for (int64_t n : shape) bytes *= static_cast<size_t>(n);
  return Tensor(ctx.scratch->Take(bytes), dtype, shape);
}

}  // namespace

void ExpertsForward(const Context& ctx, Tensor out, Tensor x, Tensor weights, Tensor experts,
                    const std::vector<Tensor>& up, const std::vector<Tensor>& down, Tensor labels,
                    LabelBias bias, Tensor added) {
  if (x.dim(0) == 0) return;
  const ArenaScope scope(ctx.scratch);
  const DType type = x.dtype();
  const auto e = static_cast<int64_t>(up.size());
  const int64_t d = x.dim(1), k = experts.dim(1), slots = x.dim(0) * k, width = down[0].dim(1);
  const Tensor slot_of_row = Taken(ctx, DType::kI32, {slots});
  const Tensor row_of_slot = Taken(ctx, DType::kI32, {x.dim(0), k});
  const Tensor counts = Taken(ctx, DType::kI64, {e});
  kernels::SortSlots(ctx, slot_of_row, row_of_slot, counts, experts);
  std::vector<int64_t> offsets = {0};
  for (int64_t i = 0; i < e; ++i) offsets.push_back(offsets.back() + counts.as<int64_t>()[i]);

  const Tensor rows = Taken(ctx, type, {slots, d}), f = Taken(ctx, type, {slots, d});
  const Tensor row_weights = Taken(ctx, weights.dtype(), {slots, 1});
  const Tensor gate_value = Taken(ctx, type, {slots, 2 * width});
  const Tensor hidden = Taken(ctx, type, {slots, width});
  kernels::GatherRows(ctx, rows, x, slot_of_row, k);
  kernels::GatherRows(ctx, row_weights, weights.View({slots, 1}), slot_of_row, 1);
  kernels::GroupedLinearForward(ctx, gate_value, rows, up, offsets);
  kernels::SwigluForward(ctx, hidden, gate_value);
  kernels::GroupedLinearForward(ctx, f, hidden, down, offsets);
  kernels::LabelBiasForward(ctx, rows, f, row_weights.View({slots}), labels, offsets, bias);
  kernels::CombineRows(ctx, out, rows, row_of_slot, added);
}

}  // namespace ela::kernels::cpu
