#include "trainer/loop/choose_device.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"
#include "trainer/loop/machine.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/nccl_communicator.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {
namespace {

// A rank may wait for another that writes a checkpoint or compiles kernels at its first step.
constexpr double kCardTimeoutSeconds = 300;

}  // namespace

double CommTimeoutSeconds(v1::DeviceKind kind) {
  const char* text = std::getenv("ELA_COMM_TIMEOUT_SECONDS");
  double seconds = 0;
  if (text != nullptr && absl::SimpleAtod(text, &seconds) && seconds > 0) return seconds;
  return kind == v1::DEVICE_KIND_CPU ? 0 : kCardTimeoutSeconds;
}

absl::StatusOr<std::unique_ptr<kernels::CudaDevice>> ChooseDevice(v1::DeviceKind kind,
                                                                  Communicator& world) {
  if (kind == v1::DEVICE_KIND_CPU) return nullptr;
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> hosts, GatherStrings(world, HostName()));
  const auto me = hosts.begin() + world.rank();
  const int before_me = static_cast<int>(std::count(hosts.begin(), me, *me));
  const int cards = kernels::NumCudaDevices();

  std::unique_ptr<kernels::CudaDevice> device;
  absl::Status mine = absl::FailedPreconditionError(kernels::WhyNoCudaDevice());
  if (cards > 0) {
    auto opened = kernels::CudaDevice::Open(before_me % cards);
    mine = opened.status();
    if (opened.ok()) device = *std::move(opened);
  }
  if (kind == v1::DEVICE_KIND_CUDA) {
    ELA_RETURN_IF_ERROR(AgreeOk(world, mine));
    return device;
  }
  int64_t without = device == nullptr ? 1 : 0;
  ELA_RETURN_IF_ERROR(AllReduceSum(world, &without, 1));
  if (without > 0) device = nullptr;
  return device;
}

absl::StatusOr<std::unique_ptr<Communicator>> WorldOf(std::unique_ptr<Communicator> host,
                                                      kernels::CudaDevice* device,
                                                      double timeout_seconds) {
  if (device == nullptr || host->size() == 1) return host;
  return MakeNcclWorld(std::move(host), device, timeout_seconds);
}

}  // namespace ela::trainer
