#include "kernels/embedding/embedding.h"

#include "tests/support/backend_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

OpRun ForwardBackward(std::vector<int32_t> ids, int64_t vocabulary, int64_t d) {
  return [=](const Context& ctx, DType dtype) {
    const int64_t rows = static_cast<int64_t>(ids.size());
    const Buffer id = Integers({rows}, ids);
    Buffer table = Input(dtype, {vocabulary, d}, 1), dx = Input(dtype, {rows, d}, 2);
    Buffer x(dtype, {rows, d}), dtable = Input(StatisticOf(dtype), {vocabulary, d}, 3);
    EmbeddingForward(ctx, x, id, table);
    EmbeddingBackward(ctx, dtable, dx, id);
    return Outputs(std::move(x), std::move(dtable));
  };
}

TEST(Embedding, IsRightOnAwkwardShapes) {
  ExpectGoodOnCpu(ForwardBackward({}, 5, 8));
  ExpectGoodOnCpu(ForwardBackward({0}, 1, 1));
  ExpectGoodOnCpu(ForwardBackward(RandomIntegers(300, 11, 1), 11, 65));
  ExpectGoodOnCpu(ForwardBackward(RandomIntegers(63, 500, 1), 500, 130));
}

TEST(Embedding, AddsEveryUseOfOneToken) {
  ExpectGoodOnCpu(ForwardBackward(std::vector<int32_t>(100, 3), 5, 33));
}

TEST(Embedding, BackwardMatchesJacobian) {
  OpContext ctx(Backend::kReference);
  const Buffer ids = Integers({4}, {2, 0, 2, 1});
  Buffer table = Input(DType::kF64, {3, 2}, 1), dx = Input(DType::kF64, {4, 2}, 2);
  Buffer x(DType::kF64, {4, 2}), dtable = ZeroBuffer(DType::kF64, {3, 2});
  EmbeddingBackward(ctx, dtable, dx, ids);
  ExpectGradient(dtable, table, [&] {
    EmbeddingForward(ctx, x, ids, table);
    return Dot(x, dx);
  });
}

TEST(EmbeddingDeathTest, RefusesAnIdOutsideTheVocabulary) {
  OpContext ctx(Backend::kCpu);
  Buffer table = Input(DType::kF32, {3, 2}, 1), x(DType::kF32, {1, 2});
  EXPECT_DEATH(EmbeddingForward(ctx, x, Integers({1}, {3}), table), "token id 3 at row 0");
}

}  // namespace
}  // namespace ela::kernels
