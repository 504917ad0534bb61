#include "coordinator/ops/cancel.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideCancel(const v1::JobRecord& record, const std::string& reason,
                                int64_t grace_ms, Instant now) {
  const v1::JobState state = record.job().state();
  if (state == v1::JOB_STATE_CANCELLED || state == v1::JOB_STATE_CANCELLING) {
    return std::optional<Change>();
  }
  if (IsTerminal(state)) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", record.job().id(), " has already ended: ", StateName(state)));
  }
  Transition transition(record, now, "user");
  const std::string why = reason.empty() ? "cancelled by the user" : "cancelled: " + reason;
  if (const v1::Attempt* attempt = ActiveAttempt(record)) {
    transition.record().set_stop(v1::STOP_KIND_CANCEL);
    transition.record().set_stop_reason(why);
    transition.Enqueue(v1::EFFECT_KIND_STOP, attempt->number(), grace_ms);
    transition.MoveTo(v1::JOB_STATE_CANCELLING, why);
  } else {
    transition.MoveTo(v1::JOB_STATE_CANCELLED, why);
  }
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::Job> Cancel(const Core& core, const v1::CancelRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr named, core.jobs->Resolve(request.job()));
  ELA_ASSIGN_OR_RETURN(
      const RecordPtr record,
      core.jobs->Update(named->job().id(), [&](const v1::JobRecord& before, Instant now) {
        return DecideCancel(before, request.reason(), core.settings.cancel_grace_ms, now);
      }));
  return core.jobs->View(*record);
}

}  // namespace ela::coordinator::ops
