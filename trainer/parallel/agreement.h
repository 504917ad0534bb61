// Ranks agree on success: a fault on one rank must not leave the others waiting in the next
// collective.
#pragma once

#include "absl/status/status.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// Collective. OK on every rank if `mine` is OK on every rank. Otherwise every rank gets the error
/// of the lowest rank that has one, as "rank 3: ..." (cut to 480 bytes), with its code.
absl::Status AgreeOk(Communicator& group, const absl::Status& mine);

}  // namespace ela::trainer
