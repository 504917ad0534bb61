// One rank under mpirun: runs the checks over MPI or NCCL, or makes a mistake on purpose.
//
//   ranks-under-mpi checks [max_message_bytes]
//   ranks-under-mpi world <expected>         refused unless that is the world's size
//   ranks-under-mpi abort <exit code>        the last rank aborts, the others wait for it
//   ranks-under-mpi sizes                    rank 0 expects fewer bytes than rank 1 sends
//   ranks-under-mpi silent <seconds>         the last rank stops without a word; the others wait
//                                            that long for it and end with code 5
//   ranks-under-mpi nccl                     the checks over NCCL; the ranks share the host's cards
//   ranks-under-mpi nccl-sums                an optimizer's sums over NCCL beside the device's work
//   ranks-under-mpi nccl-silent <seconds>    silent, where the others wait on the device
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "proto/status_macros.h"
#include "tests/trainer/parallel/checks.h"
#include "tests/trainer/parallel/staged_communicator.h"
#include "trainer/parallel/nccl_communicator.h"

namespace ela::trainer {
namespace {

absl::Status RunChecks(Communicator& world) {
  for (const NamedCheck& check : AllChecks()) {
    ELA_RETURN_IF_ERROR(check.run(world));
    if (world.rank() == 0) std::printf("ok %s\n", check.name.c_str());
  }
  return absl::OkStatus();
}

absl::Status ExpectDifferentSizes(Communicator& world) {
  const size_t bytes = world.rank() == 0 ? 8 : 16;
  std::vector<char> recv(16 * static_cast<size_t>(world.size())), send(16);
  return world.AllGather(recv.data(), send.data(), bytes);
}

/// What a rank that died, or a host that is cut off, looks like to the others: it is not there. The
/// others must find out; they end it with the job.
absl::Status LoseTheLastRank(Communicator& world) {
  const auto meet = [&world]() -> absl::Status {
    std::vector<char> recv(static_cast<size_t>(world.size())), send(1);
    return world.AllGather(recv.data(), send.data(), 1);
  };
  ELA_RETURN_IF_ERROR(meet());
  if (world.rank() == world.size() - 1) raise(SIGSTOP);
  // What else is under way must not be waited for as long, one after the other.
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status;
  {
    std::vector<std::vector<char>> received(64,
                                            std::vector<char>(static_cast<size_t>(world.size())));
    const char sent = 0;
    std::vector<std::unique_ptr<Pending>> started;
    for (std::vector<char>& recv : received) {
      ELA_ASSIGN_OR_RETURN(started.emplace_back(), world.AllGatherStart(recv.data(), &sent, 1));
    }
    status = started[0]->Wait();
  }
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
  if (spent.count() > 30) {
    return absl::DataLossError("waited for every exchange that was under way");
  }
  if (!status.ok()) return status;
  // Over NCCL a call returns before the device has met the others: the next one tells.
  status = meet();
  if (status.ok()) status = meet();
  return status.ok() ? absl::DataLossError("met a rank that is not there") : status;
}

/// Ranks that share a card must not take each other for one process: each says that it is a host.
absl::StatusOr<std::unique_ptr<Communicator>> OverNccl(std::unique_ptr<Communicator> host,
                                                       double timeout_seconds,
                                                       kernels::CudaDevice* device) {
  setenv("NCCL_HOSTID", absl::StrCat("rank-", host->rank()).c_str(), /*overwrite=*/1);
  return MakeNcclWorld(std::move(host), device, timeout_seconds);
}

absl::Status SumOnTheDevice(Communicator& world, kernels::CudaDevice* device) {
  ELA_RETURN_IF_ERROR(SumsBesideAndAfterGiveTheSameBits(world, device));
  if (world.rank() == 0) std::printf("the same bits on %s\n", device->name().c_str());
  return absl::OkStatus();
}

absl::Status Run(Communicator& world, const std::string& scenario, int64_t number) {
  if (scenario == "checks" || scenario == "nccl") return RunChecks(world);
  if (scenario == "silent" || scenario == "nccl-silent") return LoseTheLastRank(world);
  if (scenario == "sizes") return ExpectDifferentSizes(world);
  if (scenario == "abort" && world.rank() == world.size() - 1) {
    world.Abort(static_cast<int>(number));
  }
  return world.Barrier();
}

int Main(int argc, char** argv) {
  const std::string scenario = argc > 1 ? argv[1] : "checks";
  const int64_t number = argc > 2 ? std::atoll(argv[2]) : 0;
  CommunicatorOptions options;
  options.statistics = std::make_shared<CommStatistics>();
  if (scenario == "world") options.expected_world = static_cast<int>(number);
  if (scenario == "checks" && number > 0) options.max_message_bytes = static_cast<size_t>(number);
  if (scenario == "silent") options.timeout_seconds = static_cast<double>(number);
  std::unique_ptr<kernels::CudaDevice> device;  // outlives the world
  auto world = MakeCommunicator(CommunicatorKind::kMpi, options);
  if (world.ok() && scenario.rfind("nccl", 0) == 0) {
    auto opened =
        kernels::CudaDevice::Open((*world)->rank() % std::max(1, kernels::NumCudaDevices()));
    if (opened.ok()) device = *std::move(opened);
    world = opened.ok() ? OverNccl(*std::move(world), number > 0 ? static_cast<double>(number) : 60,
                                   device.get())
                        : opened.status();
  }
  if (!world.ok()) {
    std::fprintf(stderr, "%s\n", world.status().ToString().c_str());
    return 3;
  }
  if (device != nullptr && scenario != "nccl-sums") {
    world = std::make_unique<StagedCommunicator>(*std::move(world), device.get());
  }
  const absl::Status status = scenario == "nccl-sums" ? SumOnTheDevice(**world, device.get())
                                                      : Run(**world, scenario, number);
  if (status.ok()) return 0;
  std::fprintf(stderr, "rank %d: %s\n", (*world)->rank(), status.ToString().c_str());
  const bool lost = scenario == "silent" || scenario == "nccl-silent";
  const int code = lost && absl::IsUnavailable(status) ? 5 : 4;
  (*world)->Abort(code);
  return code;
}

}  // namespace
}  // namespace ela::trainer

int main(int argc, char** argv) { return ela::trainer::Main(argc, argv); }
