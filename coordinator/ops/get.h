// Get: one job as it is now.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::Job> Get(const Core& core, const v1::GetRequest& request);

}  // namespace ela::coordinator::ops
