#include "kernels/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <climits>
#include <mutex>

#include "kernels/check.h"
#include "kernels/parallel.h"

namespace ela::kernels {
namespace {

struct Tiling {
  int64_t rows, columns;  // of one tile
  int64_t down, across;   // tiles
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of the inner loops of BLAS.
constexpr int64_t kRowStep = 2 * kGemmRowGroup, kColumnStep = 16;

/// The size of `count` about equal parts of n, in whole steps. Still covers n.
int64_t Even(int64_t n, int64_t count, int64_t step) {
  return CeilDiv(CeilDiv(n, count), step) * step;
}

/// Large tiles use BLAS well; a product big enough to share but with few of them gets smaller ones.
Tiling TilingOf(const GemmProblem& p) {
  constexpr int64_t kShareFlops = 1 << 18;
  constexpr int64_t kWantedTiles = 16;
  constexpr int64_t kSmallest = 64;
  Tiling t{std::min<int64_t>(512, p.m), std::min<int64_t>(p.rows_alike ? 256 : 1024, p.n), 0, 0};
  if (p.m * p.n * p.k > kShareFlops) {
    while (CeilDiv(p.m, t.rows) * CeilDiv(p.n, t.columns) < kWantedTiles) {
      int64_t& larger = t.rows >= t.columns || p.rows_alike ? t.rows : t.columns;
      if (larger <= kSmallest) break;
      larger = std::max(kSmallest, CeilDiv(larger, 2));
    }
  }
  t.rows = Even(p.m, CeilDiv(p.m, t.rows), kRowStep);
  t.columns = Even(p.n, CeilDiv(p.n, t.columns), kColumnStep);
  t.down = CeilDiv(p.m, t.rows);
  t.across = CeilDiv(p.n, t.columns);
  return t;
}

void RunTile(const GemmProblem& p, const Tiling& t, int64_t tile) {
  const int64_t row = tile / t.across * t.rows;
  const int64_t column = tile % t.across * t.columns;
  const int64_t m = std::min(t.rows, p.m - row);
  const int64_t n = std::min(t.columns, p.n - column);
  float* c = p.c + row * p.ldc + column;
  if (p.k == 0) {
    if (p.accumulate) return;
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * p.ldc, n, 0.0f);
    return;
  }
  const float* a = p.a + (p.a_transposed ? row : row * p.lda);
  const float* b = p.b + (p.b_transposed ? column * p.ldb : column);
  cblas_sgemm(CblasRowMajor, p.a_transposed ? CblasTrans : CblasNoTrans,
              p.b_transposed ? CblasTrans : CblasNoTrans, static_cast<blasint>(m),
              static_cast<blasint>(n), static_cast<blasint>(p.k), 1.0f, a,
              static_cast<blasint>(p.lda), b, static_cast<blasint>(p.ldb),
              p.accumulate ? 1.0f : 0.0f, c, static_cast<blasint>(p.ldc));
}

/// BLAS would otherwise start its own threads, and split sums by their number.
void MakeBlasSingleThreaded() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

}  // namespace

void Gemm(const Context& ctx, const std::vector<GemmProblem>& problems) {
  MakeBlasSingleThreaded();
  std::vector<Tiling> tilings;
  std::vector<int64_t> first{0};  // tile at which each problem starts
  tilings.reserve(problems.size());
  first.reserve(problems.size() + 1);
  for (const GemmProblem& p : problems) {
    ELA_CHECK(p.k <= INT_MAX && p.lda <= INT_MAX && p.ldb <= INT_MAX && p.ldc <= INT_MAX,
              "beyond BLAS");
    tilings.push_back(p.m > 0 && p.n > 0 ? TilingOf(p) : Tiling{});
    first.push_back(first.back() + tilings.back().down * tilings.back().across);
  }
  ParallelFor(ctx, first.back(), [&](int64_t i) {
    const auto next = std::upper_bound(first.begin(), first.end(), i);
    const size_t problem = static_cast<size_t>(next - first.begin()) - 1;
    RunTile(problems[problem], tilings[problem], i - first[problem]);
  });
}

void GemmOnThisThread(const GemmProblem& p) {
  MakeBlasSingleThreaded();
  RunTile(p, {p.m, p.n, 1, 1}, 0);
}

}  // namespace ela::kernels
