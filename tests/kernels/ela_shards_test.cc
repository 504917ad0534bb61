// Sharding a sequence changes nothing: states exported, folded and continued give what one rank
// gives, forward and gradients.
#include "tests/kernels/ela_shards.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

struct Results {
  std::vector<Buffer> whole, sharded;
};

Results RunBoth(DType dtype, const Problem& problem, const Corpus& corpus,
                const std::vector<int64_t>& cuts) {
  OpContext ctx(dtype == DType::kF64 ? Backend::kReference : Backend::kCpu);
  Attention whole(dtype, problem), result(dtype, problem);
  whole.FillNormal(1);
  whole.Run(ctx);
  ShardedAttention(dtype, corpus, whole, cuts).Run(ctx, &result);
  return {whole.TakeOutputs(), result.TakeOutputs()};
}

std::vector<Problem> ProblemsOf(const Corpus& corpus, int64_t d) {
  return AllModes(2, d, d, corpus.SpansOf(0, corpus.length()));
}

void ExpectSame(DType dtype, const Corpus& corpus, const std::vector<int64_t>& cuts, int64_t d,
                double tolerance) {
  for (const Problem& p : ProblemsOf(corpus, d)) {
    SCOPED_TRACE(p.Name() + " ranks " + std::to_string(cuts.size() - 1));
    const Results r = RunBoth(dtype, p, corpus, cuts);
    ExpectOutputsNear(r.sharded, r.whole, tolerance);
  }
}

const Corpus kOneDocument{{{300}, {300}}};
// Documents of one token and over several shards, boundaries on cuts, off cuts and across them.
const Corpus kPacked{{{1, 59, 1, 180, 10, 49}, {150, 150}, {300}}};
const Corpus kShort{{{24}, {24}}};
const Corpus kShortPacked{{{1, 4, 1, 12, 6}, {12, 12}, {24}}};

TEST(ElaShards, ReferenceIsTheSameForAnyCuts) {
  for (const Corpus& corpus : {kShort, kShortPacked}) {
    ExpectSame(DType::kF64, corpus, {0, 24}, 3, 1e-15);
    ExpectSame(DType::kF64, corpus, {0, 12, 24}, 3, 1e-12);
    ExpectSame(DType::kF64, corpus, {0, 8, 16, 24}, 3, 1e-12);
    ExpectSame(DType::kF64, corpus, {0, 6, 12, 18, 24}, 3, 1e-12);
    ExpectSame(DType::kF64, corpus, {0, 3, 6, 9, 12, 15, 18, 21, 24}, 3, 1e-12);
    ExpectSame(DType::kF64, corpus, {0, 0, 1, 5, 5, 23, 24, 24}, 3, 1e-12);
  }
}

// The same sums in another order: some roundings of 6e-8 relative to the largest numbers.
TEST(ElaShards, CpuIsTheSameForAnyCuts) {
  for (const Corpus& corpus : {kOneDocument, kPacked}) {
    ExpectSame(DType::kF32, corpus, {0, 150, 300}, 8, 5e-6);
    ExpectSame(DType::kF32, corpus, {0, 100, 200, 300}, 8, 5e-6);
    ExpectSame(DType::kF32, corpus, {0, 64, 128, 192, 300}, 8, 5e-6);
    ExpectSame(DType::kF32, corpus, {0, 40, 80, 120, 160, 200, 240, 280, 300}, 8, 5e-6);
    ExpectSame(DType::kF32, corpus, {0, 0, 1, 61, 61, 239, 300, 300}, 8, 5e-6);
  }
}

TEST(ElaShards, CausalBitsAreTheSameForPowersOfTwoOfWholeChunks) {
  for (const Corpus& corpus : {Corpus{{{1536}}}, Corpus{{{100, 64, 700, 1, 671}}}}) {
    for (Problem& p : ProblemsOf(corpus, 8)) {
      if (!p.config.causal) continue;
      for (int64_t ranks : {2, 4, 8}) {
        std::vector<int64_t> cuts;
        for (int64_t r = 0; r <= ranks; ++r) cuts.push_back(r * 1536 / ranks);
        SCOPED_TRACE(p.Name() + " ranks " + std::to_string(ranks));
        const Results r = RunBoth(DType::kF32, p, corpus, cuts);
        for (size_t i = 0; i < r.whole.size(); ++i) {
          EXPECT_TRUE(BitwiseEqual(r.sharded[i], r.whole[i])) << "output " << i;
        }
      }
    }
  }
}

TEST(ElaShards, FoldingWithTheIdentityChangesNoBit) {
  for (const Problem& p : AllModes(2, 8, 5, Sequences({70, 3}))) {
    OpContext ctx(Backend::kCpu);
    Attention a(DType::kF32, p);
    a.FillNormal(1);
    const int64_t size = ElaStateSize(p.config);
    Buffer state(DType::kF32, {2, size}), copy(DType::kF32, {2, size});
    Buffer identity(DType::kF32, {2, size});
    ElaStateIdentity(ctx, identity, p.config);
    ElaLocalState(ctx, state, a.k(), a.v(), p.config, p.spans, SpanEdge::kLast);
    ela::testing::Copy(copy, state);
    ElaFold(ctx, copy, identity, p.config, {}, false);
    EXPECT_TRUE(BitwiseEqual(copy, state));
    ElaFold(ctx, identity, state, p.config, {}, false);
    EXPECT_TRUE(BitwiseEqual(identity, state));
    ElaFold(ctx, copy, state, p.config, {0, 0}, false);
    EXPECT_TRUE(BitwiseEqual(copy, state)) << "nothing is taken";
  }
}

}  // namespace
}  // namespace ela::kernels
