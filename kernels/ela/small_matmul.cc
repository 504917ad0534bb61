#include "kernels/ela/small_matmul.h"

#include <algorithm>

namespace ela::kernels::cpu {
namespace {

/// Rows x (8 Vectors) of c in registers.
template <int kRows, int kVectors>
void Tile(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
          int64_t k, bool accumulate) {
  Vector8 sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = accumulate ? LoadVector(c + i * ldc + 8 * v) : Vector8{};
    }
  }
  for (int64_t p = 0; p < k; ++p) {
    Vector8 row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = LoadVector(b + p * ldb + 8 * v);
    for (int i = 0; i < kRows; ++i) {
      const float scale = a[i * lda + p];
      for (int v = 0; v < kVectors; ++v) sum[i][v] += scale * row[v];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) StoreVector(c + i * ldc + 8 * v, sum[i][v]);
  }
}

template <int kVectors>
void Columns(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
             int64_t m, int64_t k, bool accumulate) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) {
    Tile<6, kVectors>(c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, accumulate);
  }
  for (; i + 4 <= m; i += 4) {
    Tile<4, kVectors>(c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, accumulate);
  }
  for (; i < m; ++i) {
    Tile<1, kVectors>(c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, accumulate);
  }
}

}  // namespace

void MatMul(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
            int64_t m, int64_t n, int64_t k, bool accumulate) {
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) Columns<2>(c + j, ldc, a, lda, b + j, ldb, m, k, accumulate);
  for (; j < n; j += 8) Columns<1>(c + j, ldc, a, lda, b + j, ldb, m, k, accumulate);
}

void Transpose(float* y, int64_t ldy, const float* x, int64_t ldx, int64_t rows, int64_t columns) {
  constexpr int64_t kBlock = 8;
  for (int64_t i = 0; i < rows; i += kBlock) {
    const int64_t last_row = std::min(rows, i + kBlock);
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t r = i; r < last_row; ++r) y[j * ldy + r] = x[r * ldx + j];
    }
  }
  for (int64_t j = 0; rows < ldy && j < columns; ++j) {
    std::fill(y + j * ldy + rows, y + (j + 1) * ldy, 0.0f);
  }
}

}  // namespace ela::kernels::cpu
