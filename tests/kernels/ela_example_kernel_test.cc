// A kernel of one's own, start to end: CONTRIBUTING.md, "Add an attention kernel", walks through
// this file. The class is all that a kernel needs; the tests below it are what every kernel's are,
// and say nothing about this one but its formula.
//
//   k(q, k) = sum_d u(q_d) u(k_d) + eps,   u(x) = x + 1 for x > 0, else e^x
//
// so phi(q) = [u(q_1), .., u(q_D), 1] and psi(k) = [u(k_1), .., u(k_D), eps]: D + 1 features. The
// epsilon keeps the denominator positive where every u underflows.
#include <cmath>

#include "kernels/ela/feature_map.h"
#include "tests/kernels/ela_shards.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr double kEps = 1e-6;

template <class Real>
class ShiftedElu final : public PlainFeatureMap<Real> {
 public:
  int64_t features(int64_t d) const override { return d + 1; }

  void Phi(Real* phi, const Real* q, int64_t d) const override { Features(phi, q, d, 1); }
  void Psi(Real* psi, const Real* k, int64_t d) const override { Features(psi, k, d, Real(kEps)); }
  void AddPhiGradient(Real* dq, const Real* dphi, const Real* q, int64_t d) const override {
    for (int64_t i = 0; i < d; ++i) dq[i] += dphi[i] * Slope(q[i]);
  }
  void AddPsiGradient(Real* dk, const Real* dpsi, const Real* k, int64_t d) const override {
    AddPhiGradient(dk, dpsi, k, d);
  }

 private:
  static Real Slope(Real x) { return x > 0 ? Real{1} : std::exp(x); }
  static void Features(Real* out, const Real* x, int64_t d, Real last) {
    for (int64_t i = 0; i < d; ++i) out[i] = x[i] > 0 ? x[i] + 1 : std::exp(x[i]);
    out[d] = last;
  }
};

const ShiftedElu<float> kFloat;
const ShiftedElu<double> kDouble;
const FeatureMapPair kShiftedElu{"shifted_elu", &kFloat, &kDouble};

// The definition of one pair, for the oracle.
PairWeight ShiftedEluPair(const double* q, const double* k, int64_t d) {
  const auto u = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  const auto slope = [](double x) { return x > 0 ? 1 : std::exp(x); };
  double sum = kEps;
  for (int64_t i = 0; i < d; ++i) sum += u(q[i]) * u(k[i]);
  PairWeight w{std::log(sum), {}, {}};
  for (int64_t i = 0; i < d; ++i) {
    w.dq.push_back(slope(q[i]) * u(k[i]) / sum);
    w.dk.push_back(u(q[i]) * slope(k[i]) / sum);
  }
  return w;
}

std::vector<Problem> Problems(const Spans& spans) {
  std::vector<Problem> problems;
  for (const auto& [causal, decay] :
       {std::pair{true, Decay::kNone}, {true, Decay::kHead}, {false, Decay::kNone}}) {
    problems.push_back(MakeProblem(FeatureMap::kHadamardExp, causal, decay, 2, 8, 8, spans));
    problems.back().config.custom = &kShiftedElu;
  }
  return problems;
}

TEST(ElaExampleKernel, MatchesItsDefinitionForwardAndBackward) {
  for (const Problem& p : Problems(Documents({70, 1, 29}))) {
    for (DType dtype : {DType::kF64, DType::kF32}) {
      OpContext ctx(dtype == DType::kF64 ? Backend::kReference : Backend::kCpu);
      Attention a(dtype, p);
      a.FillNormal(1);
      a.Run(ctx);
      const auto [forward, backward] = a.Errors(a.Oracle(ShiftedEluPair));
      const double tolerance = dtype == DType::kF64 ? 1e-12 : 1e-5;
      EXPECT_TRUE(forward <= tolerance && backward <= 10 * tolerance)
          << p.Name() << ": " << forward << ", " << backward;
    }
  }
}

TEST(ElaExampleKernel, BackwardMatchesFiniteDifferences) {
  for (const Problem& p : Problems(Documents({3, 1, 2}))) {
    OpContext ctx(Backend::kReference);
    Attention a(DType::kF64, p);
    a.FillNormal(1);
    a.Run(ctx);
    const auto loss = [&] {
      a.Forward(ctx);
      return ela::testing::Dot(a.y(), a.dy());
    };
    ExpectGradient(a.dq(), a.q(), loss);
    ExpectGradient(a.dk(), a.k(), loss);
    ExpectGradient(a.dv(), a.v(), loss);
  }
}

TEST(ElaExampleKernel, IsShardedAndFoldedLikeAnyOther) {
  const Corpus corpus{{{1, 59, 40}, {100}}};
  for (const Problem& p : Problems(corpus.SpansOf(0, corpus.length()))) {
    OpContext ctx(Backend::kCpu);
    Attention whole(DType::kF32, p), result(DType::kF32, p);
    whole.FillNormal(1);
    whole.Run(ctx);
    ShardedAttention(DType::kF32, corpus, whole, {0, 33, 33, 66, 100}).Run(ctx, &result);
    ExpectOutputsNear(result.TakeOutputs(), whole.TakeOutputs(), 5e-6);
  }
}

TEST(ElaExampleKernel, StaysFiniteWhereEveryFeatureUnderflows) {
  for (const Problem& p : Problems(Sequences({20}))) {
    OpContext ctx(Backend::kCpu);
    Attention a(DType::kF32, p);
    a.FillNormal(1);
    for (const Tensor& x : {a.q(), a.k()}) {
      for (int64_t i = 0; i < x.numel(); ++i) Set(x, i, -1000);
    }
    a.Run(ctx);
    EXPECT_TRUE(MaxAbs(a.y()) <= MaxAbs(a.v()) && MaxAbs(a.dq()) == 0) << p.Name();
  }
}

}  // namespace
}  // namespace ela::kernels
