#include "kernels/permute/permute.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

constexpr DType kI32 = DType::kI32;

/// Sort, gather to the experts' rows and combine back.
OpRun RoundTrip(int64_t tokens, int64_t choices, int64_t experts, std::vector<int32_t> chosen,
                int64_t n) {
  return [=](const Context& ctx, DType dtype) {
    const int64_t slots = tokens * choices;
    const Buffer expert = Integers({tokens, choices}, chosen);
    Buffer slot_of_row(kI32, {slots}), row_of_slot(kI32, {tokens, choices});
    Buffer counts(DType::kI64, {experts}), x = Input(dtype, {tokens, n}, 1);
    Buffer rows(dtype, {slots, n}), y(dtype, {tokens, n}), sum(dtype, {tokens, n});
    SortSlots(ctx, slot_of_row, row_of_slot, counts, expert);
    GatherRows(ctx, rows, x, slot_of_row, choices);
    CombineRows(ctx, y, rows, row_of_slot);
    CombineRows(ctx, sum, rows, row_of_slot, x);
    return Outputs(std::move(slot_of_row), std::move(row_of_slot), std::move(counts),
                   std::move(rows), std::move(y), std::move(sum));
  };
}

TEST(Permute, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(RoundTrip(0, 2, 4, {}, 8));
  ExpectGoodOnCpu(RoundTrip(1, 1, 1, {0}, 1));
  ExpectGoodOnCpu(RoundTrip(65, 1, 5, RandomIntegers(65, 4, 1), 63));
  ExpectGoodOnCpu(RoundTrip(400, 3, 7, RandomIntegers(1200, 7, 1), 33));
}

TEST(Permute, IsRightWhenOneExpertGetsEveryToken) {
  ExpectGoodOnCpu(RoundTrip(63, 1, 4, std::vector<int32_t>(63, 2), 9));
}

TEST(Permute, SortsByExpertThenToken) {
  OpContext ctx(TestBackend());
  const Buffer experts = Integers({3, 2}, {2, 0, 0, 2, 2, 3});
  Buffer slot_of_row(kI32, {6}), row_of_slot(kI32, {3, 2}), counts(DType::kI64, {4});
  SortSlots(ctx, slot_of_row, row_of_slot, counts, experts);
  EXPECT_EQ(Values(slot_of_row), (std::vector<double>{1, 2, 0, 3, 4, 5}));
  EXPECT_EQ(Values(row_of_slot), (std::vector<double>{2, 0, 1, 3, 4, 5}));
  EXPECT_EQ(Values(counts), (std::vector<double>{2, 0, 3, 1}));
}

// Gathering and combining are transposes of each other.
TEST(Permute, CombineIsTheBackwardOfGather) {
  OpContext ctx(Backend::kReference);
  const Buffer experts = Integers({3, 2}, {2, 0, 0, 1, 2, 1});
  Buffer slot_of_row(kI32, {6}), row_of_slot(kI32, {3, 2}), counts(DType::kI64, {3});
  SortSlots(ctx, slot_of_row, row_of_slot, counts, experts);
  Buffer x = Input(DType::kF64, {3, 4}, 1), dy = Input(DType::kF64, {6, 4}, 2);
  Buffer y(DType::kF64, {6, 4}), dx(DType::kF64, {3, 4});
  CombineRows(ctx, dx, dy, row_of_slot);
  ExpectGradient(dx, x, [&] {
    GatherRows(ctx, y, x, slot_of_row, 2);
    return Dot(y, dy);
  });
}

}  // namespace
}  // namespace ela::kernels
