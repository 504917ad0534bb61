// Matrix products of the CUDA back end, by cuBLASLt.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels::cuda {

/// c [m, n] = op(a) op(b), + added [m, n] of c's type unless that is null (it may be c). Row-major
/// with leading dimensions, as GemmProblem of gemm.h: a is stored [m, k], or [k, m] if
/// a_transposed; b is stored [k, n], or [n, k] if b_transposed. a and b are float (never rounded to
/// TF32) or bf16, c float or their type; sums are float. With k = 0 the product is 0.
struct DeviceGemm {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int64_t lda = 0;
  bool a_transposed = false;
  const void* b = nullptr;
  int64_t ldb = 0;
  bool b_transposed = false;
  void* c = nullptr;
  int64_t ldc = 0;
  const void* added = nullptr;
  int64_t ld_added = 0;
  DType input = DType::kF32;   // of a and b
  DType output = DType::kF32;  // of c
  bool ragged = false;  // m (or k, if a_transposed) changes from call to call: choose for about it
};

/// Enqueues the product. The algorithm depends on the sizes, types and alignments alone, and none
/// that adds in an order left to chance is taken: the same bits every time on one kind of card.
/// Choosing one takes the host tens of microseconds, once for every kind of product.
void Gemm(const Context& ctx, const DeviceGemm& problem);

/// Runs a product of few rows by a kernel of its own; false, and nothing, for any other. k > 0.
bool ThinGemm(const Context& ctx, const DeviceGemm& problem);

}  // namespace ela::kernels::cuda
