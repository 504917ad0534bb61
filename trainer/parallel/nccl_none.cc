// The builds without CUDA, or without NCCL's header.
#include "absl/status/status.h"
#include "trainer/parallel/nccl_communicator.h"

namespace ela::trainer {

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclWorld(std::unique_ptr<Communicator> host,
                                                            kernels::CudaDevice* device,
                                                            double timeout_seconds) {
  return absl::FailedPreconditionError(
      "several ranks on CUDA devices need NCCL, which this build was made without: install NCCL's "
      "header beside the CUDA toolkit and build again, or set resources.device: cpu");
}

}  // namespace ela::trainer
