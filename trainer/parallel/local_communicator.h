// Ranks as threads of one process: the whole trainer in one test, under a debugger or a sanitizer.
#pragma once

#include <functional>
#include <memory>

#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// Runs `rank_main(world)` on `ranks` threads and returns when all have ended. Sends are buffered,
/// so no order of calls deadlocks, and a mistake ends the run instead of hanging it: a rank that
/// returns an error, calls Abort or returns while others still wait for it, a size that differs
/// between sender and receiver, or different calls on two ranks of a group make every pending and
/// later call on all ranks return that first fault. The result is OK if all ranks returned OK, else
/// the first fault, as "rank 2: ...".
absl::Status RunLocalRanks(int ranks,
                           const std::function<absl::Status(Communicator& world)>& rank_main);

/// A world of this rank alone.
std::unique_ptr<Communicator> MakeSingleRank(const CommunicatorOptions& options);

}  // namespace ela::trainer
