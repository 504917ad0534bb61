// Resume: a paused or held job queues again, at its old place.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

/// FailedPrecondition when the job is not paused or held.
JobTable::Decision DecideResume(const v1::JobRecord& record, Instant now);

absl::StatusOr<v1::Job> Resume(const Core& core, const v1::ResumeRequest& request);

}  // namespace ela::coordinator::ops
