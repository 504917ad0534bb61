// Pause: a running job writes a checkpoint and gives its slots back; a waiting one stays aside.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

/// FailedPrecondition when the job has ended or is being cancelled; nothing to change when it is
/// paused or about to be.
JobTable::Decision DecidePause(const v1::JobRecord& record, int64_t deadline_ms, Instant now);

absl::StatusOr<v1::Job> Pause(const Core& core, const v1::PauseRequest& request);

}  // namespace ela::coordinator::ops
