#include "trainer/loop/choose_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"
#include "trainer/parallel/local_communicator.h"

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
  EXPECT_EQ(device->device, nullptr);
  EXPECT_EQ(device->note, "");
}

TEST(ChooseDevice, AutoTakesACardWhereThereIsOne) {
  const auto device = ChooseDevice(v1::DEVICE_KIND_AUTO, *Alone());
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->device != nullptr, kernels::NumCudaDevices() > 0);
  EXPECT_EQ(device->note, "");
}

TEST(ChooseDevice, CudaWithoutACardSaysWhy) {
  if (kernels::NumCudaDevices() > 0) GTEST_SKIP() << "there is a card";
  const auto device = ChooseDevice(v1::DEVICE_KIND_CUDA, *Alone());
  EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(device.status().message()),
              ::testing::HasSubstr(kernels::WhyNoCudaDevice()));
}

TEST(ChooseDevice, ACardForEachRankIsEnough) {
  EXPECT_EQ(CheckOneRankPerCard({"a"}, {"0"}), absl::OkStatus());
  EXPECT_EQ(CheckOneRankPerCard({"a", "b", "a", "b"}, {"0", "0", "1", "1"}), absl::OkStatus());
}

TEST(ChooseDevice, SaysOnWhichHostCardsLackAndHowMany) {
  const absl::Status two = CheckOneRankPerCard({"a", "b", "b", "b"}, {"0", "0", "1", "0"});
  EXPECT_EQ(two.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(two.message(),
            "b has 3 ranks for 2 cards, and each needs its own: start at most 2 there, or choose "
            "the CPU (--device cpu; of a job resources.device: cpu)");
  EXPECT_THAT(std::string(CheckOneRankPerCard({"a", "a"}, {"0", "0"}).message()),
              ::testing::HasSubstr("2 ranks for 1 card,"));
}

// With one thread a rank that would share a card, as processes would.
TEST(ChooseDevice, RanksWithoutACardOfTheirOwnTakeTheCpuOrSayWhy) {
  const int cards = kernels::NumCudaDevices(), ranks = cards + 1;
  if (cards == 0) GTEST_SKIP() << kernels::WhyNoCudaDevice();
  const absl::Status status = RunLocalRanks(ranks, [&](Communicator& world) -> absl::Status {
    ELA_ASSIGN_OR_RETURN(const ChosenDevice chosen, ChooseDevice(v1::DEVICE_KIND_AUTO, world));
    EXPECT_EQ(chosen.device, nullptr);
    EXPECT_THAT(chosen.note, ::testing::HasSubstr(absl::StrCat(ranks, " ranks for ", cards)));
    const auto cuda = ChooseDevice(v1::DEVICE_KIND_CUDA, world);
    EXPECT_EQ(cuda.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(cuda.status().message()), ::testing::HasSubstr("choose the CPU"));
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
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
