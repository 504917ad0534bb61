// One rank under mpirun: runs the checks over MPI, or makes a mistake on purpose.
//
//   ranks-under-mpi checks [max_message_bytes]
//   ranks-under-mpi world <expected>         refused unless that is the world's size
//   ranks-under-mpi abort <exit code>        the last rank aborts, the others wait for it
//   ranks-under-mpi sizes                    rank 0 expects fewer bytes than rank 1 sends
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "proto/status_macros.h"
#include "tests/trainer/parallel/checks.h"

namespace ela::trainer {
namespace {

absl::Status RunChecks(Communicator& world) {
  for (const std::vector<NamedCheck>& checks : {CollectiveChecks(), GroupChecks()}) {
    for (const NamedCheck& check : checks) {
      ELA_RETURN_IF_ERROR(check.run(world));
      if (world.rank() == 0) std::printf("ok %s\n", check.name.c_str());
    }
  }
  return absl::OkStatus();
}

absl::Status ExpectDifferentSizes(Communicator& world) {
  const size_t bytes = world.rank() == 0 ? 8 : 16;
  std::vector<char> recv(16 * static_cast<size_t>(world.size())), send(16);
  return world.AllGather(recv.data(), send.data(), bytes);
}

absl::Status Run(Communicator& world, const std::string& scenario, int64_t number) {
  if (scenario == "checks") return RunChecks(world);
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
  const auto world = MakeCommunicator(CommunicatorKind::kMpi, options);
  if (!world.ok()) {
    std::fprintf(stderr, "%s\n", world.status().ToString().c_str());
    return 3;
  }
  const absl::Status status = Run(**world, scenario, number);
  if (status.ok()) return 0;
  std::fprintf(stderr, "rank %d: %s\n", (*world)->rank(), status.ToString().c_str());
  (*world)->Abort(4);
  return 4;
}

}  // namespace
}  // namespace ela::trainer

int main(int argc, char** argv) { return ela::trainer::Main(argc, argv); }
