#include "coordinator/ops/get.h"

#include "proto/status_macros.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::Job> Get(const Core& core, const v1::GetRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, core.jobs->Resolve(request.job()));
  return core.jobs->View(*record);
}

}  // namespace ela::coordinator::ops
