// Where the ranks of a job compute: resources.device: auto | cpu | cuda.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ela/v1/job.pb.h"
#include "kernels/device.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

struct ChosenDevice {
  std::unique_ptr<kernels::CudaDevice> device;  // opened for the calling thread; null: the CPU
  std::string note;                             // why the CPU, where there are cards; else empty
};

/// Collective: this rank's place, of the same kind on all ranks. The ranks of a host take its cards
/// in turn. cuda: FailedPrecondition, with the reason, if some rank has none of its own; auto: the
/// CPU then.
absl::StatusOr<ChosenDevice> ChooseDevice(v1::DeviceKind kind, Communicator& world);

/// FailedPrecondition if two ranks share a card, which NCCL refuses. By rank: its host, and which
/// card of that host it has.
absl::Status CheckOneRankPerCard(const std::vector<std::string>& hosts,
                                 const std::vector<std::string>& cards);

/// How long a rank of a job waits for another before it ends with an error, to be retried:
/// ELA_COMM_TIMEOUT_SECONDS if that is set; else 300 where there may be cards, and 0, for ever, on
/// the CPU, where mpirun ends all ranks when one dies and the coordinator those that hang.
double CommTimeoutSeconds(v1::DeviceKind kind);

/// The world in which buffers of `device` travel too; `host` as it is where there is no device or
/// no other rank. Collective.
absl::StatusOr<std::unique_ptr<Communicator>> WorldOf(std::unique_ptr<Communicator> host,
                                                      kernels::CudaDevice* device,
                                                      double timeout_seconds);

}  // namespace ela::trainer
