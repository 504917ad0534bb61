// GetCluster: the machine, its slots, and who has them.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::Cluster> GetCluster(const Core& core);
absl::StatusOr<v1::Version> GetVersion();

}  // namespace ela::coordinator::ops
