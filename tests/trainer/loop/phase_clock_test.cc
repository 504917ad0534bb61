#include "trainer/loop/phase_clock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "absl/time/clock.h"

namespace ela::trainer {
namespace {

using ::testing::ElementsAre;

struct Reported {
  std::vector<std::string> phases;
  std::vector<double> seconds;
  PhaseClock::Report sink() {
    return [this](const std::string& phase, double s) {
      phases.push_back(phase);
      seconds.push_back(s);
    };
  }
};

TEST(PhaseClock, ReportsEachPhaseWhenItEnds) {
  Reported reported;
  PhaseClock clock(nullptr, reported.sink());
  clock.Begin("data");
  EXPECT_THAT(reported.phases, ElementsAre());
  clock.Begin("forward_backward");
  EXPECT_THAT(reported.phases, ElementsAre("data"));
  clock.Begin("");
  clock.Begin("data");
  clock.Finish();
  EXPECT_THAT(reported.phases, ElementsAre("data", "forward_backward", "data"));
}

TEST(PhaseClock, PhasesFillTheTimeBetweenThem) {
  Reported reported;
  PhaseClock clock(nullptr, reported.sink());
  const absl::Time before = absl::Now();
  clock.Begin("a");
  const absl::Time begun = absl::Now();
  for (int i = 0; i < 100; ++i) clock.Begin("b");
  const absl::Time ended = absl::Now();
  clock.Finish();
  double sum = 0;
  for (size_t i = 0; i < 100; ++i) sum += reported.seconds[i];
  EXPECT_GE(sum, 0);
  EXPECT_LE(sum, absl::ToDoubleSeconds(ended - before) + 1e-9);
  EXPECT_GE(sum + reported.seconds[100], absl::ToDoubleSeconds(ended - begun) - 1e-9);
}

/// A phase lasts as long as the device works for it, whenever the host went on.
TEST(PhaseClock, CountsTheTimeOfTheDevice) {
  if (kernels::NumCudaDevices() == 0) GTEST_SKIP() << kernels::WhyNoCudaDevice();
  const auto device = kernels::CudaDevice::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  constexpr size_t kBytes = size_t{1} << 30;
  const kernels::BackendMemory memory(kBytes, kernels::Backend::kCuda);
  kernels::Context ctx;
  ctx.backend = kernels::Backend::kCuda;
  ctx.device = device->get();
  ctx.stream = ctx.device->stream();
  Reported reported;
  PhaseClock clock(ctx.device, reported.sink());
  clock.Begin("clear");
  for (int i = 0; i < 20; ++i) kernels::internal::ClearDevice(ctx, memory.data(), kBytes);
  clock.Begin("nothing");
  clock.Finish();
  ASSERT_THAT(reported.phases, ElementsAre("clear", "nothing"));
  EXPECT_GT(reported.seconds[0], reported.seconds[1]);
}

}  // namespace
}  // namespace ela::trainer
