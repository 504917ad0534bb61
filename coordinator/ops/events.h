// Events: what happened to a job.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::EventsResponse> Events(const Core& core, const v1::EventsRequest& request);

}  // namespace ela::coordinator::ops
