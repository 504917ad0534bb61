// Logits exist one tile at a time: a few hundred rows by as much of the vocabulary as fits 4 MiB.
// Where the whole vocabulary fits beside 128 rows the tile's logits turn into their gradient in
// place (3 products); larger vocabularies are walked twice, once for the statistics and once for
// the gradient, recomputing the logits (4 products).
//
// x and dx are float or bf16, table float or bf16, dtable float. Scratch: the tile, 24 bytes a row
// of it, and for bf16 float copies of the tile's rows of x, dx and the table.
#include <cmath>
#include <limits>

#include "kernels/gemm.h"
#include "kernels/loss/loss.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

constexpr int64_t kTileFloats = 1 << 20;
constexpr int64_t kFewestRows = 128;  // below this the table is read too often for what it gives
constexpr int64_t kRecomputedRows = 1024;

struct Tile {
  int64_t rows, columns;  // columns = V: one chunk holds the whole vocabulary
};

Tile TileFor(int64_t tokens, int64_t vocabulary) {
  const int64_t rows = kTileFloats / vocabulary / 16 * 16;
  if (rows >= kFewestRows || tokens * vocabulary <= kTileFloats) {
    return {std::min(tokens, std::max<int64_t>(rows, 1)), vocabulary};
  }
  const int64_t tall = std::min(tokens, kRecomputedRows);
  return {tall, std::min(vocabulary, kTileFloats / tall)};
}

/// What the walk over the vocabulary knows of a row: the largest logit so far, the sum of
/// exponentials against it, the target's logit.
struct RowState {
  double sum;
  float largest;
  float target_logit;
  int32_t target;
};

/// One tile of rows on its way through the vocabulary.
class TileWalk {
 public:
  TileWalk(const Context& ctx, Tile tile, const Tensor& table, const Tensor& targets)
      : ctx_(ctx), tile_(tile), table_(table), targets_(targets) {
    logits_ = static_cast<float*>(
        ctx.scratch->Take(static_cast<size_t>(tile.rows * tile.columns) * sizeof(float)));
    state_ = static_cast<RowState*>(
        ctx.scratch->Take(static_cast<size_t>(tile.rows) * sizeof(RowState)));
  }

  const RowState& state(int64_t row) const { return state_[row]; }
  double Loss(int64_t row) const {
    const RowState& s = state_[row];
    return static_cast<double>(s.largest) + std::log(s.sum) - static_cast<double>(s.target_logit);
  }

  /// Starts at rows [begin, begin + x.dim(0)) and walks the vocabulary for their statistics. x is
  /// float.
  void Statistics(const Tensor& x, int64_t begin) {
    x_ = x;
    for (int64_t i = 0; i < x.dim(0); ++i) {
      const int32_t target = targets_.as<int32_t>()[begin + i];
      ELA_CHECK(target < table_.dim(0), "target %d of %lld", target,
                static_cast<long long>(table_.dim(0)));
      state_[i] = {0.0, -std::numeric_limits<float>::infinity(), 0.0f, target};
    }
    ForEachChunk([&](int64_t first, int64_t last, const Tensor& chunk) {
      Logits(chunk);
      FoldChunk(first, last);
    });
  }

  /// The second walk: dx [rows, d] (float; overwritten) and dtable (added to), each where it is
  /// given.
  void Gradients(const Tensor& dx, const Tensor& dtable, float scale) {
    ForEachChunk([&](int64_t first, int64_t last, const Tensor& chunk) {
      if (tile_.columns < table_.dim(0)) Logits(chunk);
      TurnIntoGradients(first, last, scale);
      const int64_t rows = x_.dim(0), n = last - first, d = x_.row_numel();
      std::vector<GemmProblem> problems;
      if (!dx.empty()) {
        problems.push_back({.m = rows,
                            .n = d,
                            .k = n,
                            .a = logits_,
                            .lda = n,
                            .b = chunk.as<float>(),
                            .ldb = chunk.stride(),
                            .c = dx.as<float>(),
                            .ldc = dx.stride(),
                            .accumulate = first > 0});
      }
      if (!dtable.empty()) {
        problems.push_back({.m = n,
                            .n = d,
                            .k = rows,
                            .a = logits_,
                            .lda = n,
                            .a_transposed = true,
                            .b = x_.as<float>(),
                            .ldb = x_.stride(),
                            .c = dtable.as<float>() + first * dtable.stride(),
                            .ldc = dtable.stride(),
                            .accumulate = true});
      }
      Gemm(ctx_, problems);
    });
  }

 private:
  /// body(first, last, rows [first, last) of the table in float).
  template <class Body>
  void ForEachChunk(const Body& body) {
    for (int64_t first = 0; first < table_.dim(0); first += tile_.columns) {
      const int64_t last = std::min(table_.dim(0), first + tile_.columns);
      ArenaScope scope(ctx_.scratch);
      body(first, last, Widened(ctx_, table_.Rows(first, last)));
    }
  }

  void Logits(const Tensor& chunk) {
    Gemm(ctx_, {{.m = x_.dim(0),
                 .n = chunk.dim(0),
                 .k = x_.row_numel(),
                 .a = x_.as<float>(),
                 .lda = x_.stride(),
                 .b = chunk.as<float>(),
                 .ldb = chunk.stride(),
                 .b_transposed = true,
                 .c = logits_,
                 .ldc = chunk.dim(0)}});
  }

  void FoldChunk(int64_t first, int64_t last) {
    const int64_t n = last - first;
    ParallelBlocks(ctx_, x_.dim(0), RowsPerBlock(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        RowState& s = state_[i];
        if (s.target < 0) continue;
        const float* row = logits_ + i * n;
        const float largest = MaxOf(row, n);
        if (!(largest <= s.largest)) {
          s.sum *= std::exp(static_cast<double>(s.largest) - static_cast<double>(largest));
          s.largest = largest;
        }
        s.sum += static_cast<double>(ExpSumOf(row, s.largest, n));
        if (s.target >= first && s.target < last) s.target_logit = row[s.target - first];
      }
    });
  }

  void TurnIntoGradients(int64_t first, int64_t last, float scale) {
    const int64_t n = last - first;
    ParallelBlocks(ctx_, x_.dim(0), RowsPerBlock(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const RowState& s = state_[i];
        float* row = logits_ + i * n;
        if (s.target < 0) {
          std::fill(row, row + n, 0.0f);
          continue;
        }
        const float factor = static_cast<float>(static_cast<double>(scale) / s.sum);
#pragma omp simd
        for (int64_t v = 0; v < n; ++v) row[v] = factor * ExpF(row[v] - s.largest);
        if (s.target >= first && s.target < last) row[s.target - first] -= scale;
      }
    });
  }

  const Context& ctx_;
  Tile tile_;
  Tensor table_, targets_, x_;
  float* logits_;
  RowState* state_;
};

/// visit(walk, begin, end) after the statistics of each tile of rows, in order.
template <class Visit>
void ForEachTile(const Context& ctx, const Tensor& x, const Tensor& table, const Tensor& targets,
                 const Visit& visit) {
  const int64_t tokens = x.dim(0);
  CheckShape("targets", targets, tokens, 1);
  CheckShape("table", table, table.dim(0), x.row_numel());
  if (tokens == 0) return;
  ELA_CHECK(table.dim(0) > 0, "an empty vocabulary");
  ArenaScope scope(ctx.scratch);
  const Tile tile = TileFor(tokens, table.dim(0));
  TileWalk walk(ctx, tile, table, targets);
  for (int64_t begin = 0; begin < tokens; begin += tile.rows) {
    const int64_t end = std::min(tokens, begin + tile.rows);
    ArenaScope tile_scope(ctx.scratch);
    walk.Statistics(Widened(ctx, x.Rows(begin, end)), begin);
    visit(walk, begin, end);
  }
}

}  // namespace

void LossForwardBackward(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                         Tensor table, Tensor targets, double scale) {
  if (!dx.empty()) CheckShape("dx", dx, x.dim(0), x.row_numel());
  if (!dtable.empty()) CheckShape("dtable", dtable, table.dim(0), table.row_numel());
  ForEachTile(ctx, x, table, targets, [&](TileWalk& walk, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (walk.state(t - begin).target >= 0) *loss_sum.as<double>() += walk.Loss(t - begin);
    }
    if (dx.empty() && dtable.empty()) return;
    const Tensor dx_rows = dx.empty() ? Tensor() : dx.Rows(begin, end);
    const Tensor wide_dx = dx.empty() ? Tensor() : WideTarget(ctx, dx_rows);
    walk.Gradients(wide_dx, dtable, static_cast<float>(scale));
    if (!dx.empty()) NarrowInto(ctx, dx_rows, wide_dx);
  });
}

void TokenLogprobs(const Context& ctx, Tensor logprob, Tensor x, Tensor table, Tensor targets) {
  CheckShape("logprob", logprob, x.dim(0), 1);
  ForEachTile(ctx, x, table, targets, [&](TileWalk& walk, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const bool valid = walk.state(t - begin).target >= 0;
      logprob.as<float>()[t] = valid ? static_cast<float>(-walk.Loss(t - begin)) : 0.0f;
    }
  });
}

}  // namespace ela::kernels::cpu
