// CommitCheckpoint: leave to commit, for the newest attempt only; and word of what was committed.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideCommitted(const v1::JobRecord& record, int64_t step, int64_t bytes,
                                   Instant now);

absl::StatusOr<v1::CommitCheckpointResponse> CommitCheckpoint(
    const Core& core, const v1::CommitCheckpointRequest& request, const std::string& token);

}  // namespace ela::coordinator::ops
