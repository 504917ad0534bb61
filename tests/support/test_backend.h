// Which back end the tests of ops run on beside the reference: the CPU, or with
// ELA_TEST_BACKEND=cuda in the environment a CUDA device. Without one those tests are skipped.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string_view>

#include "kernels/context.h"
#include "kernels/device.h"

namespace ela::testing {

inline kernels::Backend TestBackend() {
  const char* name = std::getenv("ELA_TEST_BACKEND");
  const bool cuda = name != nullptr && std::string_view(name) == "cuda";
  return cuda ? kernels::Backend::kCuda : kernels::Backend::kCpu;
}

/// Card 0 for the calling thread, opened once; fails the test if it can't be.
inline kernels::CudaDevice* TestDevice() {
  thread_local std::unique_ptr<kernels::CudaDevice> device;
  if (device == nullptr) {
    auto opened = kernels::CudaDevice::Open(0);
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) device = *std::move(opened);
  }
  return device.get();
}

class BackendEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    if (TestBackend() != kernels::Backend::kCuda || kernels::NumCudaDevices() > 0) return;
    GTEST_SKIP() << "no CUDA device: " << kernels::WhyNoCudaDevice();
  }
};

inline ::testing::Environment* const kBackendEnvironment =
    ::testing::AddGlobalTestEnvironment(new BackendEnvironment);

}  // namespace ela::testing
