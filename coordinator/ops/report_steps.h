// ReportSteps: progress and new points of the loss curve. Only the first of an attempt touches the
// disk.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideFirstStep(const v1::JobRecord& record, Instant now);

absl::StatusOr<v1::ReportStepsResponse> ReportSteps(const Core& core,
                                                    const v1::ReportStepsRequest& request,
                                                    const std::string& token);

}  // namespace ela::coordinator::ops
