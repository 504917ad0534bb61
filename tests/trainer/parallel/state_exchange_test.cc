// What is exchanged and folded is the state of exactly the rows of the document that other ranks
// hold: rows that see the fold see what they see of the state of those rows as one span. (Numbers
// of a state are relative to a gauge, which depends on how it was folded.)
#include "trainer/parallel/state_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/ela/ela.h"
#include "proto/status_macros.h"
#include "tests/support/op_testing.h"
#include "trainer/parallel/local_communicator.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {
namespace {

using ela::testing::Buffer;
using ela::testing::OpContext;
using ela::testing::RandomBuffer;
using kernels::Backend;
using kernels::DType;
using kernels::ElaConfig;
using kernels::FeatureMap;
using kernels::SpanEdge;
using kernels::Spans;
using kernels::Tensor;

constexpr int64_t kHeads = 2, kDim = 8;

ElaConfig Config(FeatureMap kernel, bool causal, bool decay) {
  ElaConfig config;
  config.kernel = kernel;
  config.num_heads = kHeads;
  config.head_dim = config.value_dim = kDim;
  config.causal = causal;
  if (decay) config.log_decay = kernels::HeadLogDecay(kHeads);
  return config;
}

std::vector<ElaConfig> Configs() {
  return {
      Config(FeatureMap::kHadamardExp, true, false), Config(FeatureMap::kHadamardExp, true, true),
      Config(FeatureMap::kHadamardExp, false, false), Config(FeatureMap::kSumSquared, true, true),
      Config(FeatureMap::kModulatedDot, false, false)};
}

/// Everything that states are made of, for the rows [B L] of all sequences, on every rank.
struct Rows {
  int64_t length;
  DocumentStarts starts;
  Buffer k, v, q, y, dy, lse;
  Rows(int64_t length_in, DocumentStarts starts_in)
      : length(length_in),
        starts(std::move(starts_in)),
        k(Random(1)),
        v(Random(2)),
        q(Random(3)),
        y(Random(4)),
        dy(Random(5)),
        lse(RandomBuffer(DType::kF64, {count(), kHeads}, 6)) {}
  int64_t count() const { return length * static_cast<int64_t>(starts.size()); }
  Buffer Random(uint64_t seed) const {
    return RandomBuffer(DType::kF64, {count(), kHeads, kDim}, seed);
  }
  /// Rows [begin, end) of sequence b.
  Tensor Of(const Buffer& buffer, int64_t b, int64_t begin, int64_t end) const {
    return Tensor(buffer).Rows(b * length + begin, b * length + end);
  }
};

/// The state or gradient state of rows [begin, end) of sequence b, as one span.
void StateOf(const kernels::Context& ctx, const Tensor& state, const Rows& rows, int64_t b,
             int64_t begin, int64_t end, const ElaConfig& config, StateKind kind) {
  const Spans one{{0, end - begin}, {0}};
  const auto of = [&](const Buffer& buffer) { return rows.Of(buffer, b, begin, end); };
  if (kind == StateKind::kState) {
    kernels::ElaLocalState(ctx, state, of(rows.k), of(rows.v), config, one, SpanEdge::kLast);
  } else {
    kernels::ElaLocalGradState(ctx, state, of(rows.dy), of(rows.q), of(rows.y), of(rows.lse),
                               config, one, SpanEdge::kLast);
  }
}

struct Range {
  int64_t begin, end;
};

/// The documents of the first and the last row of [begin, end).
Range DocumentsAround(const std::vector<int64_t>& starts, int64_t length, int64_t begin,
                      int64_t end) {
  const auto next = std::lower_bound(starts.begin(), starts.end(), end);
  return {*std::prev(std::upper_bound(starts.begin(), starts.end(), begin)),
          next == starts.end() ? length : *next};
}

/// One rank's exchange of `kind`, and its folds against the definition.
class Exchange {
 public:
  Exchange(Communicator* world, const Rows& rows, const ElaConfig& config, StateKind kind)
      : world_(world), rows_(rows), config_(config), kind_(kind), ctx_(Backend::kReference) {
    begin_ = ShardBegin(rows.length, world->rank(), world->size());
    end_ = ShardBegin(rows.length, world->rank() + 1, world->size());
    sequences_ = static_cast<int64_t>(rows.starts.size());
    size_ = kernels::ElaStateSize(config);
    plan_ = PlanFolds(rows.starts, rows.length, world->rank(), world->size());
  }

  absl::Status Check() {
    const int64_t edges = config_.causal ? 1 : 2;
    Buffer mine(DType::kF64, {edges * sequences_, size_});
    Buffer gathered(DType::kF64, {world_->size(), edges * sequences_, size_});
    Export(mine);
    StateExchange exchange;
    ELA_RETURN_IF_ERROR(exchange.Start(*world_, gathered, mine));
    ELA_RETURN_IF_ERROR(exchange.Wait());
    Buffer folded(DType::kF64, {sequences_, size_});
    if (!config_.causal || kind_ == StateKind::kState) {
      FoldBefore(ctx_, folded, gathered, config_, plan_, kind_);
      ELA_RETURN_IF_ERROR(Compare(folded, /*before=*/true));
    }
    if (!config_.causal || kind_ == StateKind::kGradState) {
      FoldAfter(ctx_, folded, gathered, config_, plan_, kind_);
      ELA_RETURN_IF_ERROR(Compare(folded, /*before=*/false));
    }
    return absl::OkStatus();
  }

 private:
  /// Causal passes export one edge, bidirectional ones the first spans, then the last.
  void Export(const Tensor& mine) {
    const Spans spans = LocalSpans(rows_.starts, begin_, end_);
    std::vector<Buffer> local;
    for (const Buffer* whole : {&rows_.k, &rows_.v, &rows_.q, &rows_.y, &rows_.dy, &rows_.lse}) {
      local.push_back(Local(*whole));
    }
    const bool grad = kind_ == StateKind::kGradState;
    const SpanEdge only = grad ? SpanEdge::kFirst : SpanEdge::kLast;
    int64_t at = 0;
    for (SpanEdge edge : {SpanEdge::kFirst, SpanEdge::kLast}) {
      if (config_.causal && edge != only) continue;
      const Tensor state = mine.Rows(at, at + sequences_);
      at += sequences_;
      if (grad) {
        kernels::ElaLocalGradState(ctx_, state, local[4], local[2], local[3], local[5], config_,
                                   spans, edge);
      } else {
        kernels::ElaLocalState(ctx_, state, local[0], local[1], config_, spans, edge);
      }
    }
  }

  /// This shard's rows of all sequences.
  Buffer Local(const Buffer& whole) const {
    const Tensor from = whole;
    const int64_t n = end_ - begin_;
    Buffer local = from.rank() == 2
                       ? Buffer(DType::kF64, {sequences_ * n, from.dim(1)})
                       : Buffer(DType::kF64, {sequences_ * n, from.dim(1), from.dim(2)});
    const Tensor to = local;
    for (int64_t b = 0; b < sequences_; ++b) {
      const Tensor part = rows_.Of(whole, b, begin_, end_);
      std::copy_n(part.as<double>(), part.numel(), to.as<double>() + b * n * from.row_numel());
    }
    return local;
  }

  absl::Status Compare(const Tensor& folded, bool before) {
    for (int64_t b = 0; b < sequences_; ++b) {
      Buffer expected(DType::kF64, {1, size_});
      const Tensor wanted = expected;
      if (begin_ == end_) {
        kernels::ElaStateIdentity(ctx_, wanted, config_);
      } else {
        const Range document =
            DocumentsAround(rows_.starts[static_cast<size_t>(b)], rows_.length, begin_, end_);
        StateOf(ctx_, wanted, rows_, b, before ? document.begin : end_,
                before ? begin_ : document.end, config_, kind_);
      }
      const std::vector<double> seen = Seen(folded.Rows(b, b + 1), before);
      const std::vector<double> expected_seen = Seen(wanted, before);
      for (size_t i = 0; i < seen.size(); ++i) {
        const double w = expected_seen[i];
        if (!(std::abs(seen[i] - w) <= 1e-11 * (1 + std::abs(w)))) {
          return absl::DataLossError("number " + std::to_string(i) + " of sequence " +
                                     std::to_string(b) + ": " + std::to_string(seen[i]) + " for " +
                                     std::to_string(w) + (before ? " before" : " after"));
        }
      }
    }
    return absl::OkStatus();
  }

  /// What some rows make of a state before or after them: outputs or gradients of keys.
  std::vector<double> Seen(const Tensor& state, bool before) const {
    const Rows probe(4, {{0}});
    const Spans spans{{0, 4}, {0}};
    const Tensor first = before ? state : Tensor(), second = before ? Tensor() : state;
    Buffer a = probe.Random(7), b = probe.Random(8), c = probe.Random(9);
    const Buffer lse = RandomBuffer(DType::kF64, {4, kHeads}, 10);
    if (kind_ == StateKind::kState) {
      kernels::ElaForward(ctx_, a, lse, probe.q, probe.k, probe.v, first, second, config_, spans);
      return Joined({a, lse});
    }
    kernels::ElaBackward(ctx_, a, b, c, probe.dy, probe.q, probe.k, probe.v, probe.y, probe.lse, {},
                         {}, first, second, config_, spans);
    return Joined({b, c});
  }

  static std::vector<double> Joined(std::initializer_list<Tensor> tensors) {
    std::vector<double> values;
    for (const Tensor& t : tensors) {
      values.insert(values.end(), t.as<double>(), t.as<double>() + t.numel());
    }
    return values;
  }

  Communicator* world_;
  const Rows& rows_;
  ElaConfig config_;
  StateKind kind_;
  OpContext ctx_;
  int64_t begin_, end_, sequences_, size_;
  FoldPlan plan_;
};

void ExpectFoldsAreOtherRanksRows(StateKind kind) {
  const std::vector<Rows> all = [] {
    std::vector<Rows> rows;
    rows.emplace_back(13, DocumentStarts{{0}, {0, 1, 2, 12}, {0, 6, 7}});
    rows.emplace_back(3, DocumentStarts{{0}, {0, 2}});  // shards without a row
    return rows;
  }();
  for (const Rows& rows : all) {
    for (const ElaConfig& config : Configs()) {
      for (int ranks = 1; ranks <= 5; ++ranks) {
        const absl::Status status = RunLocalRanks(ranks, [&](Communicator& world) {
          return Exchange(&world, rows, config, kind).Check();
        });
        EXPECT_EQ(status, absl::OkStatus())
            << "L " << rows.length << ", " << ranks << " ranks, causal " << config.causal;
      }
    }
  }
}

TEST(StateExchange, FoldsTheStateOfTheDocumentsOtherRows) {
  ExpectFoldsAreOtherRanksRows(StateKind::kState);
}

TEST(StateExchange, FoldsTheGradientStateOfTheDocumentsOtherRows) {
  ExpectFoldsAreOtherRanksRows(StateKind::kGradState);
}

}  // namespace
}  // namespace ela::trainer
