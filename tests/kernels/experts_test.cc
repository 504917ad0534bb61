#include "kernels/experts/experts.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

struct Shape {
  int64_t tokens, choices, experts, width, hidden;
};

/// Some experts get many tokens, some none.
OpRun Experts(const Shape& s, LabelBias bias, bool one_expert = false) {
  return [=](const Context& ctx, DType dtype) {
    const Buffer x = Input(dtype, {s.tokens, s.width}, 1);
    const Buffer weights = Input(StatisticOf(dtype), {s.tokens, s.choices}, 2);
    const Buffer labels = Input(dtype, {s.experts, s.width}, 3);
    const int32_t below = static_cast<int32_t>(one_expert ? 1 : (s.experts + 1) / 2);
    const Buffer experts =
        Integers({s.tokens, s.choices}, RandomIntegers(s.tokens * s.choices, below, 4));
    std::vector<Buffer> matrices;
    std::vector<Tensor> up, down;
    for (int64_t e = 0; e < s.experts; ++e) {
      const uint64_t seed = 10 + 2 * static_cast<uint64_t>(e);
      matrices.push_back(Input(dtype, {2 * s.hidden, s.width}, seed, 0.3));
      matrices.push_back(Input(dtype, {s.width, s.hidden}, seed + 1, 0.3));
    }
    for (size_t i = 0; i < matrices.size(); ++i) (i % 2 == 0 ? up : down).push_back(matrices[i]);
    Buffer out(dtype, {s.tokens, s.width});
    ExpertsForward(ctx, out, x, weights, experts, up, down, labels, bias);
    Buffer more(dtype, {s.tokens, s.width});
    const Buffer added = Input(dtype, {s.tokens, s.width}, 5);
    ExpertsForward(ctx, more, x, weights, experts, up, down, labels, bias, added);
    return Outputs(std::move(out), std::move(more));
  };
}

// In bf16 three intermediate results are rounded.
void ExpectGood(const OpRun& run) { ExpectGoodOnCpu(run, 1e-5, 1.5e-2); }

TEST(Experts, IsRightOnAwkwardShapes) {
  ExpectGood(Experts({0, 2, 4, 8, 8}, LabelBias::kNone));
  ExpectGood(Experts({1, 1, 1, 1, 1}, LabelBias::kInner));
  ExpectGood(Experts({1, 2, 4, 128, 192}, LabelBias::kInner));
  ExpectGood(Experts({9, 3, 7, 33, 20}, LabelBias::kOuter));
  ExpectGood(Experts({65, 2, 70, 24, 9}, LabelBias::kInner));
}

TEST(Experts, IsRightWithOneExpert) {
  ExpectGood(Experts({3, 1, 1, 64, 40}, LabelBias::kNone));
  ExpectGood(Experts({300, 1, 1, 16, 24}, LabelBias::kOuter));
}

TEST(Experts, IsRightWhenOneOfManyGetsEveryToken) {
  ExpectGood(Experts({301, 2, 5, 16, 24}, LabelBias::kNone, /*one_expert=*/true));
}

}  // namespace
}  // namespace ela::kernels
