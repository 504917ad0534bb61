// Communicator over NCCL, in device memory, beside a host communicator of the same ranks.
//
// Device buffers move by NCCL; host buffers (the few numbers that ranks agree on) by the host
// communicator, which also carries NCCL's ids. Whether a call takes the one or the other depends on
// its buffers and must be the same on all ranks. No NCCL reduction is ever used.
//
// Calls on device buffers return once they are enqueued on the device's stream: what comes after
// them there waits, the host does not. What a group starts (AllGatherStart, AllToAllVStart,
// SendRecvStart) runs beside that stream, on a stream and an NCCL communicator that are the
// group's own, after what the device's stream was given before them; Wait makes the device's
// stream wait. So the shards of a sequence do not wait for the sums of gradients over the world.
//
// A rank that dies or stops cannot be waited for on the device, so one thread watches: if NCCL
// reports an error, or a call that is next in line has not ended within the timeout, every NCCL
// communicator of the process is aborted (the device's streams go on, with what is in memory), and
// every later call returns Unavailable with the first fault. libnccl is loaded at run time.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// `device` must outlive the world and all that is split from it. Collective over `host`.
/// FailedPrecondition if there is no libnccl to load.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclWorld(std::unique_ptr<Communicator> host,
                                                            kernels::CudaDevice* device,
                                                            double timeout_seconds);

}  // namespace ela::trainer
