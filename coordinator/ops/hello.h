// Hello: the ranks of an attempt are up.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideHello(const v1::JobRecord& record, const v1::HelloRequest& request,
                               Instant now);

absl::StatusOr<v1::HelloResponse> Hello(const Core& core, const v1::HelloRequest& request,
                                        const std::string& token);

}  // namespace ela::coordinator::ops
