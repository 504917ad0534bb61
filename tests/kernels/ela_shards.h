// One attention problem on several ranks: each runs its rows with the states that the others
// export, folded in a balanced tree over the ranks.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "tests/kernels/ela_testing.h"

namespace ela::testing {

/// Equally long sequences, each of documents of the given lengths.
struct Corpus {
  std::vector<std::vector<int64_t>> documents;  // [B]

  int64_t sequences() const { return static_cast<int64_t>(documents.size()); }
  int64_t length() const {
    int64_t sum = 0;
    for (int64_t n : documents[0]) sum += n;
    return sum;
  }
  /// Of offsets [begin, end) of every sequence; a sequence without rows has one empty span.
  Spans SpansOf(int64_t begin, int64_t end) const {
    Spans spans{{0}, {}};
    for (size_t b = 0; b < documents.size(); ++b) {
      const size_t count = spans.sequence.size();
      int64_t start = 0;
      for (int64_t n : documents[b]) {
        const int64_t rows = std::min(end, start + n) - std::max(begin, start);
        start += n;
        if (rows > 0) Add(&spans, b, rows);
      }
      if (spans.sequence.size() == count) Add(&spans, b, 0);
    }
    return spans;
  }
  /// Whether offsets i < j of sequence b are of one document.
  bool SameDocument(size_t b, int64_t i, int64_t j) const {
    int64_t end = 0;
    for (int64_t n : documents[b]) {
      end += n;
      if (i < end) return j < end;
    }
    return false;
  }

 private:
  static void Add(Spans* spans, size_t b, int64_t rows) {
    spans->begin.push_back(spans->begin.back() + rows);
    spans->sequence.push_back(static_cast<int32_t>(b));
  }
};

class ShardedAttention {
 public:
  /// Rank r holds offsets [cuts[r], cuts[r + 1]) of every sequence of `whole`.
  ShardedAttention(DType dtype, const Corpus& corpus, const Attention& whole,
                   std::vector<int64_t> cuts)
      : corpus_(corpus), whole_(whole), cuts_(std::move(cuts)), dtype_(dtype) {
    for (size_t r = 0; r + 1 < cuts_.size(); ++r) {
      Problem p = whole.problem();
      p.spans = corpus.SpansOf(cuts_[r], cuts_[r + 1]);
      ranks_.push_back(std::make_unique<Attention>(dtype, p));
      for (const Member& x : {&Attention::q, &Attention::k, &Attention::v, &Attention::dy}) {
        Move(x, r, /*to_whole=*/false, whole);
      }
    }
  }

  /// Writes y, lse and gradients into `result`, as if it had run there.
  void Run(const kernels::Context& ctx, Attention* result) {
    const bool causal = whole_.problem().config.causal;
    Export(ctx, /*gradient=*/false);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      before_.push_back(Fold(ctx, r, /*from_before=*/true, last_));
      after_.push_back(Fold(ctx, r, false, first_));
      ranks_[r]->Forward(ctx, before_[r], causal ? Tensor() : after_[r].tensor());
    }
    Export(ctx, /*gradient=*/true);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const Buffer gafter = Fold(ctx, r, false, first_), gbefore = Fold(ctx, r, true, last_);
      const Tensor none;
      ranks_[r]->Backward(ctx, before_[r], causal ? none : after_[r].tensor(),
                          causal ? none : gbefore.tensor(), gafter);
      for (const Member& x :
           {&Attention::y, &Attention::lse, &Attention::dq, &Attention::dk, &Attention::dv}) {
        Move(x, r, /*to_whole=*/true, *result);
      }
    }
  }

 private:
  using Member = Tensor (Attention::*)() const;

  void Move(Member x, size_t r, bool to_whole, const Attention& whole) const {
    const int64_t rows = cuts_[r + 1] - cuts_[r];
    for (int64_t b = 0; b < corpus_.sequences(); ++b) {
      const Tensor mine = ((*ranks_[r]).*x)().Rows(b * rows, (b + 1) * rows);
      const int64_t at = b * corpus_.length() + cuts_[r];
      const Tensor all = (whole.*x)().Rows(at, at + rows);
      to_whole ? Copy(all, mine) : Copy(mine, all);
    }
  }

  Buffer NewState(const kernels::Context& ctx) const {
    const ElaConfig& config = whole_.problem().config;
    Buffer state(StatisticOf(dtype_), {corpus_.sequences(), kernels::ElaStateSize(config)});
    kernels::ElaStateIdentity(ctx, state, config);
    return state;
  }

  void Export(const kernels::Context& ctx, bool gradient) {
    first_.clear();
    last_.clear();
    for (const auto& a : ranks_) {
      for (auto edge : {kernels::SpanEdge::kFirst, kernels::SpanEdge::kLast}) {
        Buffer state = NewState(ctx);
        const Problem& p = a->problem();
        if (gradient) {
          kernels::ElaLocalGradState(ctx, state, a->dy(), a->q(), a->y(), a->lse(), p.config,
                                     p.spans, edge);
        } else {
          kernels::ElaLocalState(ctx, state, a->k(), a->v(), p.config, p.spans, edge);
        }
        (edge == kernels::SpanEdge::kFirst ? first_ : last_).push_back(std::move(state));
      }
    }
  }

  /// Per sequence, whether rank `other` holds rows of the document at rank r's edge.
  std::vector<uint8_t> Take(size_t r, size_t other) const {
    std::vector<uint8_t> take;
    for (size_t b = 0; b < corpus_.documents.size(); ++b) {
      const bool rows = cuts_[r] < cuts_[r + 1] && cuts_[other] < cuts_[other + 1];
      take.push_back(rows && (other < r ? corpus_.SameDocument(b, cuts_[other + 1] - 1, cuts_[r])
                                        : corpus_.SameDocument(b, cuts_[r + 1] - 1, cuts_[other])));
    }
    return take;
  }

  /// The balanced tree over the ranks: subtrees beside the path from the root to r, largest first.
  Buffer Fold(const kernels::Context& ctx, size_t r, bool from_before,
              const std::vector<Buffer>& exported) const {
    Buffer acc = NewState(ctx);
    size_t low = 0, high = ranks_.size();
    while (high - low > 1) {
      const size_t middle = (low + high + 1) / 2;
      const bool left = r < middle;
      if (left != from_before) {
        const Buffer sum =
            left ? Root(ctx, r, middle, high, exported) : Root(ctx, r, low, middle, exported);
        kernels::ElaFold(ctx, acc, sum, whole_.problem().config, {}, !from_before);
      }
      (left ? high : low) = middle;
    }
    return acc;
  }

  Buffer Root(const kernels::Context& ctx, size_t r, size_t low, size_t high,
              const std::vector<Buffer>& exported) const {
    const ElaConfig& config = whole_.problem().config;
    const bool reverse = low > r;
    if (high - low == 1) {
      Buffer leaf = NewState(ctx);
      kernels::ElaFold(ctx, leaf, exported[low], config, Take(r, low), reverse);
      return leaf;
    }
    const size_t middle = (low + high + 1) / 2;
    Buffer left = Root(ctx, r, low, middle, exported);
    Buffer right = Root(ctx, r, middle, high, exported);
    kernels::ElaFold(ctx, reverse ? right : left, reverse ? left : right, config, {}, reverse);
    return reverse ? std::move(right) : std::move(left);
  }

  const Corpus& corpus_;
  const Attention& whole_;
  std::vector<int64_t> cuts_;
  DType dtype_;
  std::vector<std::unique_ptr<Attention>> ranks_;
  std::vector<Buffer> first_, last_;  // exported by each rank
  std::vector<Buffer> before_, after_;
};

}  // namespace ela::testing
