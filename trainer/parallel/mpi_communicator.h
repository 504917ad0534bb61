// Communicator over MPI point-to-point messages, in host memory. No MPI reduction is ever used.
//
// MPI runs at the level SERIALIZED: one process-wide mutex around every MPI call, waits poll it.
// Messages longer than max_message_bytes are cut, so that nothing is limited to 2 GiB. MPI errors
// come back as Unavailable with MPI's own text. A rank that waits gives its core away: first it
// yields, then it sleeps for some 20 us at a time.
#pragma once

#include <memory>

#include "trainer/parallel/communicator.h"

namespace ela::trainer {

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiWorld(const CommunicatorOptions& options);

}  // namespace ela::trainer
