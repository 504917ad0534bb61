// Float matrix products of the CPU back end, by BLAS.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/context.h"

namespace ela::kernels {

/// c [m, n] = op(a) op(b), or += if `accumulate`. Row-major with leading dimensions: a is stored
/// [m, k], or [k, m] if a_transposed; b is stored [k, n], or [n, k] if b_transposed. With k = 0 the
/// product is 0.
struct GemmProblem {
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  int64_t lda = 0;
  bool a_transposed = false;
  const float* b = nullptr;
  int64_t ldb = 0;
  bool b_transposed = false;
  float* c = nullptr;
  int64_t ldc = 0;
  bool accumulate = false;
  /// A row's bits depend on its place and its numbers, not on m, if it is in a whole group of
  /// kGemmRowGroup: only such groups are cut apart, and columns in the same places whatever m is.
  bool rows_alike = false;
};

/// Rows that the inner loops of BLAS take at once; what is left over they compute in other ways.
inline constexpr int64_t kGemmRowGroup = 24;

/// Computes all problems, whose results must not overlap. The results are cut into tiles that
/// depend on m, n, k alone; each is one call of single-threaded BLAS over all of k, so the bits do
/// not depend on the number of threads.
void Gemm(const Context& ctx, const std::vector<GemmProblem>& problems);

/// One product on the calling thread, in one call of BLAS: for ops that cut their own tiles.
void GemmOnThisThread(const GemmProblem& problem);

}  // namespace ela::kernels
