// Goodbye: the ranks are about to leave. How the attempt ended is still read from its exit records.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideGoodbye(const v1::JobRecord& record, const v1::GoodbyeRequest& request,
                                 Instant now);

absl::StatusOr<v1::GoodbyeResponse> Goodbye(const Core& core, const v1::GoodbyeRequest& request,
                                            const std::string& token);

}  // namespace ela::coordinator::ops
