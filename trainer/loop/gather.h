// Strings between ranks: manifests, addresses.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// Collective: all ranks' strings, on every rank, in rank order.
absl::StatusOr<std::vector<std::string>> GatherStrings(Communicator& group,
                                                       const std::string& mine);
/// Collective: rank 0's string on every rank.
absl::StatusOr<std::string> BroadcastString(Communicator& group, const std::string& of_rank_0);

}  // namespace ela::trainer
