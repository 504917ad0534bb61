#include "trainer/loop/choose_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

namespace ela::trainer {
namespace {

std::unique_ptr<Communicator> Alone() {
  auto world = MakeCommunicator(CommunicatorKind::kLocal, {});
  EXPECT_TRUE(world.ok()) << world.status();
  return *std::move(world);
}

TEST(ChooseDevice, CpuOpensNoCard) {
  const auto device = ChooseDevice(v1::DEVICE_KIND_CPU, *Alone());
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(*device, nullptr);
}

TEST(ChooseDevice, AutoTakesACardWhereThereIsOne) {
  const auto device = ChooseDevice(v1::DEVICE_KIND_AUTO, *Alone());
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(*device != nullptr, kernels::NumCudaDevices() > 0);
}

TEST(ChooseDevice, CudaWithoutACardSaysWhy) {
  if (kernels::NumCudaDevices() > 0) GTEST_SKIP() << "there is a card";
  const auto device = ChooseDevice(v1::DEVICE_KIND_CUDA, *Alone());
  EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(device.status().message()),
              ::testing::HasSubstr(kernels::WhyNoCudaDevice()));
}

TEST(CommTimeout, IsForEverOnTheCpuUnlessItIsSet) {
  EXPECT_EQ(CommTimeoutSeconds(v1::DEVICE_KIND_CPU), 0);
  EXPECT_EQ(CommTimeoutSeconds(v1::DEVICE_KIND_CUDA), 300);
  setenv("ELA_COMM_TIMEOUT_SECONDS", "7", /*overwrite=*/1);
  EXPECT_EQ(CommTimeoutSeconds(v1::DEVICE_KIND_CPU), 7);
  EXPECT_EQ(CommTimeoutSeconds(v1::DEVICE_KIND_CUDA), 7);
  for (const char* wrong : {"", "-1", "soon"}) {
    setenv("ELA_COMM_TIMEOUT_SECONDS", wrong, /*overwrite=*/1);
    EXPECT_EQ(CommTimeoutSeconds(v1::DEVICE_KIND_AUTO), 300) << wrong;
  }
  unsetenv("ELA_COMM_TIMEOUT_SECONDS");
}

TEST(ChooseDevice, OneRankKeepsItsWorld) {
  const auto world = WorldOf(Alone(), nullptr, /*timeout_seconds=*/0);
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ((*world)->size(), 1);
}

}  // namespace
}  // namespace ela::trainer
