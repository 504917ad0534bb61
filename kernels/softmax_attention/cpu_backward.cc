// Backward. A work item is one head of a run of key tiles: for each tile it walks the queries that
// see it, with five products of BLAS a pair of tiles, and adds dk and dv once. Its part of dq is
// its own, and the parts are added in key order: where heads alone fill 8 threads there is one
// part, and in float that is dq itself. How keys are cut into runs depends on the shapes alone, so
// the bits do not depend on the threads. Scratch of a thread: 2 x 64 x 256 numbers, 2 x 256 rows,
// and for bf16 float copies of the tiles; and the parts of dq, [runs, H, Tq, D] in float.
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

constexpr int64_t kWantedItems = 8;

struct BackwardProblem {
  Tensor dk, dv, dy, q, k, v, lse, delta;
  const Places& queries;
  const Places& keys;
  SoftmaxAttentionConfig config;
  float scale;
};

/// Where an item adds its part of dq: head h of row i at data + i * stride.
struct Target {
  float* data;
  int64_t stride;
};

void AddRows(const Tensor& x, int64_t h, int64_t begin, int64_t rows, const float* add) {
  const int64_t d = x.dim(2);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = (begin + i) * x.stride() + h * d;
    if (IsFloat(x)) {
      float* to = x.as<float>() + at;
      for (int64_t c = 0; c < d; ++c) to[c] += add[i * d + c];
    } else {
      Bf16* to = x.as<Bf16>() + at;
      for (int64_t c = 0; c < d; ++c) to[c] = Bf16(static_cast<float>(to[c]) + add[i * d + c]);
    }
  }
}

/// One head of one tile of keys against all queries.
class KeyTile {
 public:
  static int64_t Floats(const BackwardProblem& p) {
    const int64_t d = p.config.head_dim;
    return 2 * kQueryTile * kKeyTile + 2 * kKeyTile * d + (IsFloat(p.k) ? 0 : 2 * kKeyTile * d) +
           (IsFloat(p.q) && IsFloat(p.dy) ? 0 : 2 * kQueryTile * d);
  }

  KeyTile(const BackwardProblem& p, int64_t head, int64_t tile, Target dq, float* buffer)
      : p_(p),
        head_(head),
        tile_(tile),
        begin_(p.keys.begin(tile)),
        rows_(p.keys.end(tile) - begin_),
        d_(p.config.head_dim),
        dq_(dq),
        p_tile_(buffer),
        ds_tile_(p_tile_ + kQueryTile * kKeyTile),
        dk_(ds_tile_ + kQueryTile * kKeyTile),
        dv_(dk_ + kKeyTile * d_),
        wide_keys_(dv_ + kKeyTile * d_),
        wide_queries_(wide_keys_ + (IsFloat(p.k) ? 0 : 2 * kKeyTile * d_)) {}

  void Run() {
    bool started = false;
    for (int64_t t = 0; t < p_.queries.tiles(); ++t) {
      const VisibleKeys seen = Meet(p_.queries, t, p_.keys, tile_, p_.config.causal);
      if (seen.empty()) continue;
      if (!started) Start();
      started = true;
      Add(t, seen);
    }
    if (!started) return;
    AddRows(p_.dk, head_, begin_, rows_, dk_);
    AddRows(p_.dv, head_, begin_, rows_, dv_);
  }

 private:
  void Start() {
    std::fill(dk_, dk_ + rows_ * d_, 0.0f);
    std::fill(dv_, dv_ + rows_ * d_, 0.0f);
    keys_ = ReadHead(p_.k, head_, begin_, begin_ + rows_, wide_keys_);
    values_ = ReadHead(p_.v, head_, begin_, begin_ + rows_, wide_keys_ + kKeyTile * d_);
  }

  void Add(int64_t query_tile, const VisibleKeys& seen) {
    const int64_t begin = p_.queries.begin(query_tile), end = p_.queries.end(query_tile);
    const int64_t m = end - begin, n = seen.count(), first = seen.begin - begin_;
    const HeadRows q = ReadHead(p_.q, head_, begin, end, wide_queries_);
    const HeadRows dy = ReadHead(p_.dy, head_, begin, end, wide_queries_ + kQueryTile * d_);
    const HeadRows k{keys_.data + first * keys_.stride, keys_.stride};
    const HeadRows v{values_.data + first * values_.stride, values_.stride};

    DotRows(p_tile_, q, k, m, n, d_);
    DotRows(ds_tile_, dy, v, m, n, d_);
    for (int64_t i = 0; i < m; ++i) Weights(i, begin + i, n);
    if (!seen.all) {
      Mask(p_tile_, 0, p_.queries, begin, end, p_.keys, seen, p_.config.causal);
      Mask(ds_tile_, 0, p_.queries, begin, end, p_.keys, seen, p_.config.causal);
    }
    OfColumns(dv_ + first * d_, p_tile_, dy, m, n);
    OfColumns(dk_ + first * d_, ds_tile_, q, m, n);
    GemmOnThisThread({.m = m,
                      .n = d_,
                      .k = n,
                      .a = ds_tile_,
                      .lda = n,
                      .b = k.data,
                      .ldb = k.stride,
                      .c = dq_.data + begin * dq_.stride,
                      .ldc = dq_.stride,
                      .accumulate = true});
  }

  // p = e^(scale s - lse), ds = scale p (dp - delta).
  void Weights(int64_t i, int64_t row, int64_t n) const {
    float* p = p_tile_ + i * n;
    float* ds = ds_tile_ + i * n;
    const float lse = p_.lse.as<float>()[row * p_.lse.stride() + head_];
    const float delta = p_.delta.as<float>()[row * p_.delta.stride() + head_];
    const float scale = p_.scale;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float weight = ExpF(scale * p[j] - lse);
      p[j] = weight;
      ds[j] = scale * weight * (ds[j] - delta);
    }
  }

  /// c [n, D] += w^T x, w [m, n].
  void OfColumns(float* c, const float* w, const HeadRows& x, int64_t m, int64_t n) const {
    GemmOnThisThread({.m = n,
                      .n = d_,
                      .k = m,
                      .a = w,
                      .lda = n,
                      .a_transposed = true,
                      .b = x.data,
                      .ldb = x.stride,
                      .c = c,
                      .ldc = d_,
                      .accumulate = true});
  }

  const BackwardProblem& p_;
  int64_t head_, tile_, begin_, rows_, d_;
  Target dq_;
  float *p_tile_, *ds_tile_, *dk_, *dv_, *wide_keys_, *wide_queries_;
  HeadRows keys_{}, values_{};
};

/// Runs of key tiles, so that heads x runs fill the threads.
int64_t RunsOf(int64_t heads, int64_t key_tiles) {
  const int64_t wanted = (kWantedItems + heads - 1) / heads;
  return std::max<int64_t>(1, std::min(wanted, key_tiles));
}

/// dq += the sum of the parts [runs, H, Tq, D], in order.
void AddParts(const Context& ctx, const Tensor& dq, float* parts, int64_t runs) {
  const int64_t rows = dq.dim(0), heads = dq.dim(1), d = dq.dim(2), all = heads * rows * d;
  ParallelBlocks(ctx, rows, RowsPerBlock(heads * d), [&](int64_t begin, int64_t end) {
    for (int64_t h = 0; h < heads; ++h) {
      float* sum = parts + (h * rows + begin) * d;
      const int64_t n = (end - begin) * d;
      for (int64_t r = 1; r < runs; ++r) {
        for (int64_t c = 0; c < n; ++c) sum[c] += sum[r * all + c];
      }
      AddRows(dq, h, begin, end - begin, sum);
    }
  });
}

}  // namespace

void SoftmaxAttentionBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy,
                              Tensor q, Tensor k, Tensor v, Tensor lse, Tensor delta,
                              Tensor q_document, Tensor k_document, Tensor q_position,
                              Tensor k_position, const SoftmaxAttentionConfig& config) {
  const int64_t heads = config.num_heads, d = config.head_dim, rows = q.dim(0);
  for (const auto& [name, x] : {std::pair{"dq", dq}, {"dy", dy}, {"q", q}}) {
    CheckShape(name, x, rows, heads * d);
  }
  for (const auto& [name, x] : {std::pair{"dk", dk}, {"dv", dv}, {"k", k}, {"v", v}}) {
    CheckShape(name, x, k.dim(0), heads * d);
  }
  CheckShape("lse", lse, rows, heads);
  CheckShape("delta", delta, rows, heads);
  const Places queries(q_document, q_position, kQueryTile), keys(k_document, k_position, kKeyTile);
  ELA_CHECK(queries.count() == rows && keys.count() == k.dim(0), "places of other rows");
  if (rows == 0 || keys.count() == 0) return;
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  const BackwardProblem problem{dk, dv, dy, q, k, v, lse, delta, queries, keys, config, scale};

  ArenaScope scope(ctx.scratch);
  const int64_t runs = RunsOf(heads, keys.tiles());
  const bool in_place = runs == 1 && IsFloat(dq);
  const int64_t part = rows * d;  // numbers of one item's dq
  float* parts = nullptr;
  if (!in_place) {
    const size_t bytes = static_cast<size_t>(runs * heads * part) * sizeof(float);
    parts = static_cast<float*>(ctx.scratch->Take(bytes));
  }
  const ThreadBuffers buffers(ctx, KeyTile::Floats(problem));
  ParallelFor(ctx, runs * heads, [&](int64_t item) {
    const int64_t run = item / heads, head = item % heads;
    Target target{in_place ? dq.as<float>() + head * d : parts + item * part,
                  in_place ? dq.stride() : d};
    if (!in_place) std::fill(target.data, target.data + part, 0.0f);
    const int64_t end = (run + 1) * keys.tiles() / runs;
    for (int64_t tile = run * keys.tiles() / runs; tile < end; ++tile) {
      KeyTile(problem, head, tile, target, buffers.Get()).Run();
    }
  });
  if (!in_place) AddParts(ctx, dq, parts, runs);
}

}  // namespace ela::kernels::cpu
