#include "trainer/loop/choose_device.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"
#include "trainer/loop/machine.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/nccl_communicator.h"

namespace ela::trainer {
namespace {

// A rank may wait for another that writes a checkpoint or compiles kernels at its first step.
constexpr double kCardTimeoutSeconds = 300;

// What NCCL takes for a host: ranks that name different ones may share a card.
std::string NcclHostName() {
  const char* name = std::getenv("NCCL_HOSTID");
  return name != nullptr ? name : HostName();
}

// Of this machine since it was started: several may call themselves localhost.
std::string BootId() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return boot;
}

// Where a card is; NCCL too tells machines of one name apart by when they were started.
std::string PlaceOf(const kernels::CudaDevice& card) {
  return absl::StrCat(card.bus_id(), " ", BootId());
}

}  // namespace

double CommTimeoutSeconds(v1::DeviceKind kind) {
  const char* text = std::getenv("ELA_COMM_TIMEOUT_SECONDS");
  double seconds = 0;
  if (text != nullptr && absl::SimpleAtod(text, &seconds) && seconds > 0) return seconds;
  return kind == v1::DEVICE_KIND_CPU ? 0 : kCardTimeoutSeconds;
}

absl::Status CheckOneRankPerCard(const std::vector<std::string>& hosts,
                                 const std::vector<std::string>& cards) {
  for (const std::string& host : hosts) {
    std::set<std::string> different;
    size_t ranks = 0;
    for (size_t r = 0; r < hosts.size(); ++r) {
      if (hosts[r] != host) continue;
      ++ranks;
      different.insert(cards[r]);
    }
    if (different.size() == ranks) continue;
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s has %d ranks for %d card%s, and each needs its own: start at most %d there, or choose "
        "the CPU (--device cpu; of a job resources.device: cpu)",
        host, ranks, different.size(), different.size() == 1 ? "" : "s", different.size()));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChosenDevice> ChooseDevice(v1::DeviceKind kind, Communicator& world) {
  if (kind == v1::DEVICE_KIND_CPU) return ChosenDevice();
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> machines,
                       GatherStrings(world, absl::StrCat(HostName(), " ", BootId())));
  const auto me = machines.begin() + world.rank();
  const int before_me = static_cast<int>(std::count(machines.begin(), me, *me));
  const int cards = kernels::NumCudaDevices();

  ChosenDevice chosen;
  absl::Status status = absl::FailedPreconditionError(kernels::WhyNoCudaDevice());
  if (cards > 0) {
    auto opened = kernels::CudaDevice::Open(before_me % cards);
    status = opened.status();
    if (opened.ok()) chosen.device = *std::move(opened);
  }
  ELA_ASSIGN_OR_RETURN(
      const std::vector<std::string> places,
      GatherStrings(world, chosen.device == nullptr ? "" : PlaceOf(*chosen.device)));
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> nccl_hosts,
                       GatherStrings(world, NcclHostName()));
  status = AgreeOk(world, status);
  if (status.ok()) status = CheckOneRankPerCard(nccl_hosts, places);
  if (status.ok()) return chosen;
  if (kind == v1::DEVICE_KIND_CUDA || !absl::IsFailedPrecondition(status)) return status;
  const bool some = std::any_of(places.begin(), places.end(),
                                [](const std::string& place) { return !place.empty(); });
  return ChosenDevice{nullptr, some ? absl::StrCat("on the CPU: ", status.message()) : ""};
}

absl::StatusOr<std::unique_ptr<Communicator>> WorldOf(std::unique_ptr<Communicator> host,
                                                      kernels::CudaDevice* device,
                                                      double timeout_seconds) {
  if (device == nullptr || host->size() == 1) return host;
  return MakeNcclWorld(std::move(host), device, timeout_seconds);
}

}  // namespace ela::trainer
