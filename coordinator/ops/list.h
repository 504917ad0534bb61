// List: the newest jobs first, a page at a time.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::ListResponse> List(const Core& core, const v1::ListRequest& request);

}  // namespace ela::coordinator::ops
