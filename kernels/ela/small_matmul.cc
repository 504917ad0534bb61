#include "kernels/ela/small_matmul.h"

#include <algorithm>
#include <cstring>

// How vectors are passed depends on the machine's instructions: no matter, none leaves this file.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace ela::kernels::cpu {
namespace {

using Vector8 = float __attribute__((vector_size(32)));

Vector8 LoadVector(const float* x) {
  Vector8 v;
  std::memcpy(&v, x, sizeof v);
  return v;
}
void StoreVector(float* x, const Vector8& v) { std::memcpy(x, &v, sizeof v); }

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

namespace {

template <int... kLanes>
Vector8 Shuffle(const Vector8& a, const Vector8& b) {
  return __builtin_shufflevector(a, b, kLanes...);
}

/// y [8, ldy] = x [8, ldx]^T, 8 x 8 in registers.
void TransposeBlock(float* y, int64_t ldy, const float* x, int64_t ldx) {
  Vector8 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = LoadVector(x + i * ldx);
  for (int i = 0; i < 8; i += 2) {
    s[i] = Shuffle<0, 8, 1, 9, 4, 12, 5, 13>(r[i], r[i + 1]);
    s[i + 1] = Shuffle<2, 10, 3, 11, 6, 14, 7, 15>(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = Shuffle<0, 1, 8, 9, 4, 5, 12, 13>(s[i], s[i + 2]);
    r[i + 1] = Shuffle<2, 3, 10, 11, 6, 7, 14, 15>(s[i], s[i + 2]);
    r[i + 2] = Shuffle<0, 1, 8, 9, 4, 5, 12, 13>(s[i + 1], s[i + 3]);
    r[i + 3] = Shuffle<2, 3, 10, 11, 6, 7, 14, 15>(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    StoreVector(y + i * ldy, Shuffle<0, 1, 2, 3, 8, 9, 10, 11>(r[i], r[i + 4]));
    StoreVector(y + (i + 4) * ldy, Shuffle<4, 5, 6, 7, 12, 13, 14, 15>(r[i], r[i + 4]));
  }
}

}  // namespace

void Transpose(float* y, int64_t ldy, const float* x, int64_t ldx, int64_t rows, int64_t columns) {
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    for (int64_t j = 0; j < columns; j += 8) {
      TransposeBlock(y + j * ldy + i, ldy, x + i * ldx + j, ldx);
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t r = i; r < rows; ++r) y[j * ldy + r] = x[r * ldx + j];
    std::fill(y + j * ldy + rows, y + (j + 1) * ldy, 0.0f);
  }
}

}  // namespace ela::kernels::cpu
