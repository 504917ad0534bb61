// Forward. A work item is one head of 64 queries, which walks the keys in tiles of 256: two
// products of BLAS a tile, softmax kept online in float. Items share nothing, so the bits do not
// depend on the threads. Scratch of a thread: 64 scores x 256, 64 rows of output, and for bf16
// float copies of the tiles.
#include <cmath>
#include <limits>

#include "kernels/gemm.h"
#include "kernels/parallel.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "kernels/softmax_attention/tiles.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

using softmax_attention::HeadRows;
using softmax_attention::kKeyTile;
using softmax_attention::kQueryTile;
using softmax_attention::Places;
using softmax_attention::ReadHead;
using softmax_attention::VisibleKeys;

constexpr float kNothing = -std::numeric_limits<float>::infinity();

/// x = e^(scale x - shift), returning the sum.
float ScaledExpSum(float* x, float scale, float shift, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) {
      const float e = ExpF(scale * x[i + j] - shift);
      x[i + j] = e;
      lanes[j] += e;
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    x[i] = ExpF(scale * x[i] - shift);
    lanes[j] += x[i];
  }
  float sum = 0;
  for (int j = 0; j < 16; ++j) sum += lanes[j];
  return sum;
}

struct ForwardProblem {
  Tensor y, lse, q, k, v;
  const Places& queries;
  const Places& keys;
  SoftmaxAttentionConfig config;
  float scale;
};

/// One head of one tile of queries.
class QueryTile {
 public:
  static int64_t Floats(const ForwardProblem& p) {
    const int64_t d = p.config.head_dim;
    return kQueryTile * kKeyTile + kQueryTile * d + (IsFloat(p.q) ? 0 : kQueryTile * d) +
           (IsFloat(p.k) ? 0 : kKeyTile * d);
  }

  QueryTile(const ForwardProblem& p, int64_t head, int64_t tile, float* buffer)
      : p_(p),
        head_(head),
        tile_(tile),
        begin_(p.queries.begin(tile)),
        rows_(p.queries.end(tile) - begin_),
        d_(p.config.head_dim),
        scores_(buffer),
        out_(scores_ + kQueryTile * kKeyTile),
        wide_queries_(out_ + kQueryTile * d_),
        wide_keys_(wide_queries_ + (IsFloat(p.q) ? 0 : kQueryTile * d_)) {}

  void Run() {
    bool started = false;
    for (int64_t t = 0; t < p_.keys.tiles(); ++t) {
      const VisibleKeys seen = Meet(p_.queries, tile_, p_.keys, t, p_.config.causal);
      if (seen.empty()) continue;
      if (!started) Start();
      started = true;
      Fold(seen);
    }
    if (started) Finish();
  }

 private:
  // What was seen before counts as one key of score lse and value y.
  void Start() {
    query_ = ReadHead(p_.q, head_, begin_, begin_ + rows_, wide_queries_);
    for (int64_t i = 0; i < rows_; ++i) {
      const float lse = p_.lse.as<float>()[(begin_ + i) * p_.lse.stride() + head_];
      largest_[i] = lse;
      sum_[i] = lse == kNothing ? 0.0f : 1.0f;
      float* out = out_ + i * d_;
      const float* y = ReadFloats(p_.y, YOffset(i), d_, out);
      if (y != out) std::copy(y, y + d_, out);
    }
  }

  void Fold(const VisibleKeys& seen) {
    const int64_t n = seen.count();
    const HeadRows keys = ReadHead(p_.k, head_, seen.begin, seen.end, wide_keys_);
    DotRows(scores_, query_, keys, rows_, n, d_);
    if (!seen.all) {
      Mask(scores_, kNothing, p_.queries, begin_, begin_ + rows_, p_.keys, seen, p_.config.causal);
    }
    for (int64_t i = 0; i < rows_; ++i) FoldRow(i, n);
    const HeadRows values = ReadHead(p_.v, head_, seen.begin, seen.end, wide_keys_);
    GemmOnThisThread({.m = rows_,
                      .n = d_,
                      .k = n,
                      .a = scores_,
                      .lda = n,
                      .b = values.data,
                      .ldb = values.stride,
                      .c = out_,
                      .ldc = d_,
                      .accumulate = true});
  }

  // Scores to weights against the new maximum; the row so far is brought to it.
  void FoldRow(int64_t i, int64_t n) {
    float* row = scores_ + i * n;
    const float score = p_.scale * MaxOf(row, n);
    const float largest = score <= largest_[i] ? largest_[i] : score;
    if (largest == kNothing) {
      std::fill(row, row + n, 0.0f);
      return;
    }
    if (largest != largest_[i]) {
      const float shrink = ExpF(largest_[i] - largest);
      float* out = out_ + i * d_;
      for (int64_t c = 0; c < d_; ++c) out[c] *= shrink;
      sum_[i] *= shrink;
      largest_[i] = largest;
    }
    sum_[i] += ScaledExpSum(row, p_.scale, largest, n);
  }

  void Finish() {
    for (int64_t i = 0; i < rows_; ++i) {
      if (sum_[i] == 0.0f) continue;  // has met nothing
      float* out = out_ + i * d_;
      float* y = FloatTarget(p_.y, YOffset(i), out);
      for (int64_t c = 0; c < d_; ++c) y[c] = out[c] / sum_[i];
      WriteFloats(p_.y, YOffset(i), d_, y);
      p_.lse.as<float>()[(begin_ + i) * p_.lse.stride() + head_] = largest_[i] + std::log(sum_[i]);
    }
  }

  int64_t YOffset(int64_t i) const { return (begin_ + i) * p_.y.stride() + head_ * d_; }

  const ForwardProblem& p_;
  int64_t head_, tile_, begin_, rows_, d_;
  float *scores_, *out_, *wide_queries_, *wide_keys_;
  HeadRows query_{};
  float largest_[kQueryTile], sum_[kQueryTile];
};

}  // namespace

void SoftmaxAttentionForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                             Tensor q_document, Tensor k_document, Tensor q_position,
                             Tensor k_position, const SoftmaxAttentionConfig& config) {
  const int64_t width = config.num_heads * config.head_dim;
  CheckShape("y", y, q.dim(0), width);
  CheckShape("lse", lse, q.dim(0), config.num_heads);
  CheckShape("q", q, q.dim(0), width);
  CheckShape("k", k, k.dim(0), width);
  CheckShape("v", v, k.dim(0), width);
  const Places queries(q_document, q_position, kQueryTile), keys(k_document, k_position, kKeyTile);
  ELA_CHECK(queries.count() == q.dim(0) && keys.count() == k.dim(0), "places of other rows");
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config.head_dim)));
  const ForwardProblem problem{y, lse, q, k, v, queries, keys, config, scale};

  ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, QueryTile::Floats(problem));
  ParallelFor(ctx, config.num_heads * queries.tiles(), [&](int64_t item) {
    // Late tiles see the most keys: they come first, so that no thread ends with a long one.
    const int64_t tile = queries.tiles() - 1 - item / config.num_heads;
    QueryTile(problem, item % config.num_heads, tile, buffers.Get()).Run();
  });
}

void SoftmaxAttentionMerge(const Context& ctx, Tensor y, Tensor lse, Tensor part_y,
                           Tensor part_lse) {
  const int64_t rows = y.dim(0), heads = y.dim(1), d = y.dim(2);
  CheckShape("part_y", part_y, rows, heads * d);
  CheckShape("lse", lse, rows, heads);
  CheckShape("part_lse", part_lse, rows, heads);
  ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, BufferFloats(y) + BufferFloats(part_y));
  ParallelBlocks(ctx, rows, RowsPerBlock(heads * d), [&](int64_t begin, int64_t end) {
    float* buffer = buffers.Get();
    for (int64_t i = begin; i < end; ++i) {
      float* logs = lse.as<float>() + i * lse.stride();
      const float* part_logs = part_lse.as<float>() + i * part_lse.stride();
      const float* part = ReadRow(part_y, i, buffer + BufferFloats(y));
      float* out = RowTarget(y, i, buffer);
      if (!IsFloat(y)) ReadRow(y, i, buffer);
      for (int64_t h = 0; h < heads; ++h) {
        if (part_logs[h] == kNothing) continue;
        const float largest = std::max(logs[h], part_logs[h]);
        const float before = std::exp(logs[h] - largest), more = std::exp(part_logs[h] - largest);
        const float share = more / (before + more);
        for (int64_t c = h * d; c < (h + 1) * d; ++c) out[c] += share * (part[c] - out[c]);
        logs[h] = largest + std::log(before + more);
      }
      WriteRow(y, i, out);
    }
  });
}

}  // namespace ela::kernels::cpu
