#include "kernels/device.h"

#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kernels/elementwise/elementwise.h"
#include "tests/support/op_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (NumCudaDevices() == 0) GTEST_SKIP() << "no CUDA device: " << WhyNoCudaDevice();
  }
};

TEST(CudaDevice, OpeningAMissingCardSaysWhich) {
  const auto opened = CudaDevice::Open(1000);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kFailedPrecondition);
  const bool built = WhyNoCudaDevice().find("no toolkit") == std::string::npos;
  EXPECT_TRUE(!built || opened.status().message().find("1000") != std::string::npos)
      << opened.status();
}

TEST_F(CudaDeviceTest, EachCardHasAUuid) {
  std::set<std::string> uuids;
  for (int i = 0; i < NumCudaDevices(); ++i) {
    const auto card = CudaDevice::Open(i), again = CudaDevice::Open(i);
    ASSERT_TRUE(card.ok() && again.ok()) << card.status() << again.status();
    EXPECT_EQ((*card)->uuid(), (*again)->uuid());
    EXPECT_EQ((*card)->uuid().size(), 32u);
    uuids.insert((*card)->uuid());
  }
  EXPECT_EQ(uuids.size(), static_cast<size_t>(NumCudaDevices()));
  ASSERT_TRUE(CudaDevice::Open(0).ok());  // the thread's card again
}

TEST_F(CudaDeviceTest, CopiesMoreThanItsStagingMemoryHolds) {
  OpContext ctx(Backend::kCuda);
  std::vector<int32_t> numbers(5'000'000), back(numbers.size());
  std::iota(numbers.begin(), numbers.end(), 1);
  const BackendMemory memory(numbers.size() * sizeof(int32_t), Backend::kCuda);
  const Tensor on_device = Tensor(memory.data(), DType::kI32, {5'000'000});
  CopyIn(*ctx, on_device, numbers.data());
  const std::vector<int32_t> expected = numbers;
  std::fill(numbers.begin(), numbers.end(), 0);  // what was handed in may change at once
  CopyOut(*ctx, back.data(), on_device);
  EXPECT_EQ(back, expected);
  Clear(*ctx, on_device);
  CopyOut(*ctx, back.data(), on_device);
  EXPECT_EQ(back, numbers);
}

TEST_F(CudaDeviceTest, ArenaTakesDeviceMemoryInStackOrder) {
  const OpContext ctx(Backend::kCuda);
  Arena arena;
  arena.Reserve(4096, Backend::kCuda);
  char* first = static_cast<char*>(arena.Take(10));
  const size_t mark = arena.Mark();
  char* second = static_cast<char*>(arena.Take(300));
  EXPECT_EQ(second - first, 256);
  arena.Release(mark);
  EXPECT_EQ(arena.Take(1), second);
  float zero = 1;
  Fill(*ctx, Tensor(first, DType::kF32, {1}), 0);
  CopyOut(*ctx, &zero, Tensor(first, DType::kF32, {1}));
  EXPECT_EQ(zero, 0.0f);
}

TEST_F(CudaDeviceTest, AnArenaMovesFromOneKindOfMemoryToTheOther) {
  const OpContext ctx(Backend::kCuda);
  Arena arena;
  arena.Reserve(4096, Backend::kCpu);
  arena.Reserve(1024, Backend::kCuda);
  Fill(*ctx, Tensor(arena.Take(1024), DType::kF32, {256}), 3);
  arena.Release(0);
  arena.Reserve(1024, Backend::kCpu);
  std::memset(arena.Take(1024), 1, 1024);
}

TEST_F(CudaDeviceTest, AGraphDoesAgainWhatWasRecorded) {
  OpContext ctx(Backend::kCuda);
  const BackendMemory memory(2 * sizeof(float), Backend::kCuda);
  const Tensor x(memory.data(), DType::kF32, {2});
  Fill(*ctx, x, 1);
  auto graph = CudaGraph::Record(*TestDevice(), [&] {
    Add(*ctx, x, x, x);
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  std::vector<float> numbers(2);
  CopyOut(*ctx, numbers.data(), x);
  EXPECT_EQ(numbers, (std::vector<float>{1, 1})) << "recording ran it";
  const CudaGraph moved = *std::move(graph);
  for (int i = 0; i < 3; ++i) moved.Replay();
  CopyOut(*ctx, numbers.data(), x);
  EXPECT_EQ(numbers, (std::vector<float>{8, 8}));
}

TEST_F(CudaDeviceTest, AnErrorWhileRecordingIsHandedOnAndTheStreamGoesOn) {
  OpContext ctx(Backend::kCuda);
  const BackendMemory memory(sizeof(float), Backend::kCuda);
  const Tensor x(memory.data(), DType::kF32, {1});
  const auto graph = CudaGraph::Record(*TestDevice(), [&] {
    Fill(*ctx, x, 5);
    return absl::InternalError("midway");
  });
  EXPECT_EQ(graph.status().message(), "midway");
  Fill(*ctx, x, 3);
  float number = 0;
  CopyOut(*ctx, &number, x);
  EXPECT_EQ(number, 3);
}

}  // namespace
}  // namespace ela::kernels
