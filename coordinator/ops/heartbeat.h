// Heartbeat: a sign of life. Touches no disk.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::HeartbeatResponse> Heartbeat(const Core& core,
                                                const v1::HeartbeatRequest& request,
                                                const std::string& token);

}  // namespace ela::coordinator::ops
