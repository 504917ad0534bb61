// Rows by expert and back. A slot is one (token, j) of the T*K choices.
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// Stable sort of the slots by (expert, token): slot_of_row [T*K] and its inverse row_of_slot [T,
/// K] (i32), counts [E] (i64).
void SortSlots(const Context& ctx, Tensor slot_of_row, Tensor row_of_slot, Tensor counts,
               Tensor experts);

/// y [R, n] = x [., n] rows index[r] / divisor (index [R] i32): gathers a slot's token row with
/// divisor = K.
void GatherRows(const Context& ctx, Tensor y, Tensor x, Tensor index, int64_t divisor);

/// y [T, n] = sum over j ascending of rows[row_of_slot[t, j]], + added [T, n] unless that is empty
/// (and not y): the combine, and the backward of a gather with divisor K.
void CombineRows(const Context& ctx, Tensor y, Tensor rows, Tensor row_of_slot, Tensor added = {});

}  // namespace ela::kernels
