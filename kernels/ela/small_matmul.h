// Products of matrices that lie in the caches, for one thread: rows are dense floats, the number of
// columns is a multiple of 8. Sums run over k in order, whatever the machine's vectors are.
#pragma once

#include <cstdint>

namespace ela::kernels::cpu {

/// c [m, n] = a [m, k] b [k, n], or += if `accumulate`; rows of lda, ldb, ldc. n is a multiple
/// of 8.
void MatMul(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
            int64_t m, int64_t n, int64_t k, bool accumulate);

/// y [columns, ldy] = x [rows, columns]^T, columns a multiple of 8; columns [rows, ldy) of y become
/// 0.
void Transpose(float* y, int64_t ldy, const float* x, int64_t ldx, int64_t rows, int64_t columns);

}  // namespace ela::kernels::cpu
