// Cancel: ends a job for good; wins over retry, pause and completion.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

/// FailedPrecondition when the job has ended otherwise; nothing to change when it is cancelled or
/// being cancelled.
JobTable::Decision DecideCancel(const v1::JobRecord& record, const std::string& reason,
                                int64_t grace_ms, Instant now);

absl::StatusOr<v1::Job> Cancel(const Core& core, const v1::CancelRequest& request);

}  // namespace ela::coordinator::ops
