// The CPU back end against the double one: shapes, element types, threads.
#include "tests/kernels/ela_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

// Sums of at most a few hundred terms in chunks of 64, with e^x to two units and log-denominators
// rounded to float: some tens of roundings of 6e-8. bf16 results are half a unit in 8 bits off,
// 2e-3, and gradients take in as much again from y, which is read back as bf16.
constexpr double kTolerance = 1e-5, kBf16GradientTolerance = 8e-3;

void ExpectGood(const Problem& p) {
  SCOPED_TRACE(p.Name());
  const OpRun run = AttentionRun(p);
  const std::vector<Buffer> expected = RunAs(DType::kF64, 1, run);
  ExpectOutputsNear(RunAs(DType::kF32, 2, run), expected, kTolerance);
  ExpectOutputsNear(RunAs(DType::kBf16, 2, run), expected, kBf16GradientTolerance);
  ExpectSameBits(DType::kF32, run);
}

TEST(ElaCpu, IsRightAtTheEdgesOfAChunk) {
  for (int64_t length : {1, 63, 64, 65, 200}) {
    for (const Problem& p : AllModes(2, 16, 16, Sequences({length}))) ExpectGood(p);
  }
}

TEST(ElaCpu, IsRightForPackedDocumentsAndEmptySequences) {
  for (const Problem& p : AllModes(2, 8, 8, Documents({1, 30, 33, 1, 64, 0, 70, 1}))) ExpectGood(p);
  for (const Problem& p : AllModes(2, 8, 8, Sequences({0, 70, 0, 1}))) ExpectGood(p);
  for (const Problem& p : AllModes(2, 8, 8, Sequences({0}))) ExpectGood(p);
}

TEST(ElaCpu, IsRightForOddSizes) {
  for (const Problem& p : AllModes(3, 8, 5, Sequences({70}))) ExpectGood(p);
  for (const Problem& p : AllModes(1, 5, 1, Sequences({70}))) ExpectGood(p);
}

TEST(ElaCpu, IsRightForEveryHeadDim) {
  for (int64_t d = 8; d <= 256; d += d < 64 ? 8 : 64) {
    for (FeatureMap kernel : kAllMaps) {
      const Problem p = MakeProblem(kernel, true, Decay::kHead, 1, d, d, Sequences({70}));
      SCOPED_TRACE(p.Name());
      ExpectMatchesReference(DType::kF32, kTolerance, AttentionRun(p));
    }
  }
}

}  // namespace
}  // namespace ela::kernels
