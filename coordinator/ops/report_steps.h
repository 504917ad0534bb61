// ReportSteps: progress and new points of the loss curve. Only the first of an attempt touches the
// disk, and those with which checkpoints begin to fail.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideFirstStep(const v1::JobRecord& record, Instant now);

/// One event for all checkpoints that are lost in a row.
JobTable::Decision DecideCheckpointFailure(const v1::JobRecord& record, const v1::Progress& told,
                                           Instant now);

absl::StatusOr<v1::ReportStepsResponse> ReportSteps(const Core& core,
                                                    const v1::ReportStepsRequest& request,
                                                    const std::string& token);

}  // namespace ela::coordinator::ops
