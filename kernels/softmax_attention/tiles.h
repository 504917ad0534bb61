// Which tiles of queries and keys meet, for the CPU back end: tiles without a pair that meets are
// never computed, and a tile is cut down to the keys that can be seen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/rows.h"
#include "kernels/tensor.h"

namespace ela::kernels::softmax_attention {

constexpr int64_t kQueryTile = 64;
constexpr int64_t kKeyTile = 256;

/// The documents and positions of rows, and what a tile of them spans.
class Places {
 public:
  struct Extent {
    int32_t first_document, last_document, first_position, last_position;
  };

  Places(const Tensor& documents, const Tensor& positions, int64_t tile)
      : document_(documents.as<int32_t>()),
        position_(positions.as<int32_t>()),
        count_(documents.numel()),
        tile_(tile) {
    ELA_CHECK(positions.numel() == count_ && documents.dense() && positions.dense());
    for (int64_t t = 0; t < tiles(); ++t) extents_.push_back(ExtentOf(begin(t), end(t)));
  }

  int64_t count() const { return count_; }
  int64_t tiles() const { return (count_ + tile_ - 1) / tile_; }
  int64_t begin(int64_t tile) const { return tile * tile_; }
  int64_t end(int64_t tile) const { return std::min(count_, (tile + 1) * tile_); }
  const Extent& extent(int64_t tile) const { return extents_[static_cast<size_t>(tile)]; }
  int32_t document(int64_t row) const { return document_[row]; }
  int32_t position(int64_t row) const { return position_[row]; }
  const int32_t* documents() const { return document_; }
  const int32_t* positions() const { return position_; }

 private:
  Extent ExtentOf(int64_t begin, int64_t end) const {
    const auto d = std::minmax_element(document_ + begin, document_ + end);
    const auto p = std::minmax_element(position_ + begin, position_ + end);
    return {*d.first, *d.second, *p.first, *p.second};
  }
  const int32_t* document_;
  const int32_t* position_;
  int64_t count_, tile_;
  std::vector<Extent> extents_;
};

/// Keys [begin, end) of a tile, outside of which no query of the other tile sees any; `all`: every
/// pair inside meets.
struct VisibleKeys {
  int64_t begin = 0, end = 0;
  bool all = false;
  bool empty() const { return begin >= end; }
  int64_t count() const { return end - begin; }
};

inline VisibleKeys Meet(const Places& queries, int64_t query_tile, const Places& keys,
                        int64_t key_tile, bool causal) {
  const Places::Extent &q = queries.extent(query_tile), &k = keys.extent(key_tile);
  if (q.last_document < k.first_document || k.last_document < q.first_document) return {};
  if (causal && k.first_position > q.last_position) return {};
  VisibleKeys seen{keys.begin(key_tile), keys.end(key_tile), false};
  const bool one_document =
      q.first_document == q.last_document && k.first_document == k.last_document;
  seen.all = one_document && (!causal || k.last_position <= q.first_position);
  if (seen.all) return seen;
  const auto hidden = [&](int64_t row) {
    const int32_t document = keys.document(row);
    return document < q.first_document || document > q.last_document ||
           (causal && keys.position(row) > q.last_position);
  };
  while (!seen.empty() && hidden(seen.begin)) ++seen.begin;
  while (!seen.empty() && hidden(seen.end - 1)) --seen.end;
  return seen;
}

/// scores [query rows, keys] = `masked` where query and key don't meet.
inline void Mask(float* scores, float masked, const Places& queries, int64_t query_begin,
                 int64_t query_end, const Places& keys, const VisibleKeys& seen, bool causal) {
  const int32_t* documents = keys.documents() + seen.begin;
  const int32_t* positions = keys.positions() + seen.begin;
  const int64_t n = seen.count();
  for (int64_t i = query_begin; i < query_end; ++i, scores += n) {
    const int32_t document = queries.document(i);
    const int32_t position = causal ? queries.position(i) : std::numeric_limits<int32_t>::max();
    for (int64_t j = 0; j < n; ++j) {
      const bool meet = (documents[j] == document) & (positions[j] <= position);
      scores[j] = meet ? scores[j] : masked;
    }
  }
}

/// Rows of one head as float, [rows, D] with a stride.
struct HeadRows {
  const float* data;
  int64_t stride;
};

/// Rows [begin, end) of head h of x [T, H, D]: where they lie, or widened into `buffer`.
inline HeadRows ReadHead(const Tensor& x, int64_t h, int64_t begin, int64_t end, float* buffer) {
  const int64_t d = x.dim(2);
  if (IsFloat(x)) return {x.as<float>() + begin * x.stride() + h * d, x.stride()};
  const Bf16* rows = x.as<Bf16>() + begin * x.stride() + h * d;
  for (int64_t i = 0; i < end - begin; ++i) Widen(buffer + i * d, rows + i * x.stride(), d);
  return {buffer, d};
}

/// c [m, n] = a b^T, of rows of `d` numbers.
inline void DotRows(float* c, const HeadRows& a, const HeadRows& b, int64_t m, int64_t n,
                    int64_t d) {
  GemmOnThisThread({.m = m,
                    .n = n,
                    .k = d,
                    .a = a.data,
                    .lda = a.stride,
                    .b = b.data,
                    .ldb = b.stride,
                    .b_transposed = true,
                    .c = c,
                    .ldc = n});
}

}  // namespace ela::kernels::softmax_attention
