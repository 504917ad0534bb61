#include "trainer/parallel/communicator.h"

#include "absl/strings/str_cat.h"
#include "trainer/parallel/local_communicator.h"
#include "trainer/parallel/mpi_communicator.h"

namespace ela::trainer {
namespace {

absl::StatusOr<std::unique_ptr<Communicator>> MakeLocal(const CommunicatorOptions& options) {
  if (options.expected_world > 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("the job's mesh has ", options.expected_world,
                     " ranks (parallelism.data x "
                     "parallelism.sequence), this process runs alone: start it with `mpirun -n ",
                     options.expected_world, "`, or set both to 1"));
  }
  return MakeSingleRank(options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(CommunicatorKind kind,
                                                               const CommunicatorOptions& options) {
  switch (kind) {
    case CommunicatorKind::kMpi:
      return MakeMpiWorld(options);
    case CommunicatorKind::kNccl:
      return absl::FailedPreconditionError(
          "this build has no CUDA back end, and so no NCCL: set device: cpu, or build with a CUDA "
          "toolkit (cmake --preset cuda)");
    case CommunicatorKind::kLocal:
      return MakeLocal(options);
  }
  return absl::InternalError("unknown communicator");
}

}  // namespace ela::trainer
