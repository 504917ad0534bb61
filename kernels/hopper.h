// What Hopper kernels need on the host: whether there is such a card, and tensor maps for its copy
// engine.
#pragma once

#include <cuda.h>

#include "kernels/tensor.h"

namespace ela::kernels::cuda {

/// Whether the current device runs code for sm_90a.
bool IsHopper();

/// Whether TensorMapOf takes x [T, H, D]: bf16, rows at multiples of 16 bytes, T < 2^31 - 64.
bool HasTensorMap(const Tensor& x);

/// x as a matrix of T rows of H D columns, loaded in boxes of `box_rows` rows (at most 256) of 64
/// columns with a 128-byte swizzle (hopper.cuh); rows past the end read as zeros.
/// What L2 fetches at least is a choice of speed.
CUtensorMap TensorMapOf(const Tensor& x, int box_rows,
                        CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B);

}  // namespace ela::kernels::cuda
