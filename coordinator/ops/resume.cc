#include "coordinator/ops/resume.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideResume(const v1::JobRecord& record, Instant now) {
  const v1::JobState state = record.job().state();
  if (state != v1::JOB_STATE_PAUSED && state != v1::JOB_STATE_HELD) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", record.job().id(), " is ", StateName(state), ", not PAUSED",
                     record.stop() == v1::STOP_KIND_PAUSE ? " yet; try again in a moment" : ""));
  }
  Transition transition(record, now, "user");
  transition.MoveTo(v1::JOB_STATE_QUEUED, "resumed by the user");
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::Job> Resume(const Core& core, const v1::ResumeRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr named, core.jobs->Resolve(request.job()));
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, core.jobs->Update(named->job().id(), DecideResume));
  return core.jobs->View(*record);
}

}  // namespace ela::coordinator::ops
