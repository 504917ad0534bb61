// The double back end against the definition and against finite differences.
#include "tests/kernels/ela_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kF64 = DType::kF64;

TEST(ElaReference, MatchesTheDefinition) {
  for (const Spans& spans : {Sequences({20, 0, 1, 7}), Documents({1, 5, 0, 13})}) {
    for (const Problem& p : AllModes(2, 5, 3, spans)) {
      OpContext ctx(Backend::kReference);
      Attention a(kF64, p);
      a.FillNormal(1);
      a.Run(ctx);
      const auto [forward, backward] = a.Errors(a.Oracle());
      EXPECT_TRUE(forward <= 1e-12 && backward <= 1e-10)
          << p.Name() << ": " << forward << ", " << backward;
    }
  }
}

// The gauges are constants to the gradient: that they cancel is part of what this shows.
TEST(ElaReference, BackwardMatchesFiniteDifferences) {
  for (const Spans& spans : {Sequences({6}), Documents({3, 1, 4})}) {
    for (const Problem& p : AllModes(2, 3, 2, spans)) {
      OpContext ctx(Backend::kReference);
      Attention a(kF64, p);
      a.FillNormal(1);
      a.Run(ctx);
      const auto loss = [&] {
        a.Forward(ctx);
        return ela::testing::Dot(a.y(), a.dy());
      };
      SCOPED_TRACE(p.Name());
      ExpectGradient(a.dq(), a.q(), loss);
      ExpectGradient(a.dk(), a.k(), loss);
      ExpectGradient(a.dv(), a.v(), loss);
    }
  }
}

TEST(ElaReference, LseIsTheLogOfTheDenominator) {
  for (const Problem& p : AllModes(2, 5, 3, Sequences({9}))) {
    OpContext ctx(Backend::kReference);
    Attention a(kF64, p);
    a.FillNormal(1);
    a.Forward(ctx);
    EXPECT_TRUE(RelativeError(a.lse(), a.Oracle().lse) <= 1e-12) << p.Name();
  }
}

TEST(ElaReference, DecayRatesAreSpreadOverTheHeads) {
  EXPECT_DOUBLE_EQ(HeadLogDecay(1)[0], std::log(0.75));
  const std::vector<double> rates = HeadLogDecay(8);
  EXPECT_DOUBLE_EQ(rates.front(), std::log(0.75));
  EXPECT_DOUBLE_EQ(rates[3], std::log1p(-1.0 / 32));
  EXPECT_DOUBLE_EQ(rates.back(), std::log1p(-1.0 / 512));
}

}  // namespace
}  // namespace ela::kernels
