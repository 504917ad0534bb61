#include "coordinator/ops/pause.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {

JobTable::Decision DecidePause(const v1::JobRecord& record, int64_t deadline_ms, Instant now) {
  const v1::JobState state = record.job().state();
  if (state == v1::JOB_STATE_PAUSED || record.stop() == v1::STOP_KIND_PAUSE) {
    return std::optional<Change>();
  }
  if (IsTerminal(state) || state == v1::JOB_STATE_CANCELLING || state == v1::JOB_STATE_HELD ||
      state == v1::JOB_STATE_PREEMPTING) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", record.job().id(), " cannot be paused: it is ", StateName(state)));
  }
  Transition transition(record, now, "user");
  if (const v1::Attempt* attempt = ActiveAttempt(record)) {
    transition.record().set_stop(v1::STOP_KIND_PAUSE);
    transition.record().set_stop_reason("paused by the user");
    transition.Enqueue(v1::EFFECT_KIND_CHECKPOINT_AND_EXIT, attempt->number(), deadline_ms);
    transition.MoveTo(v1::JOB_STATE_PREEMPTING, "writes a checkpoint, then pauses");
  } else {
    transition.MoveTo(v1::JOB_STATE_PAUSED, "paused by the user");
  }
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::Job> Pause(const Core& core, const v1::PauseRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr named, core.jobs->Resolve(request.job()));
  ELA_ASSIGN_OR_RETURN(
      const RecordPtr record,
      core.jobs->Update(named->job().id(), [&](const v1::JobRecord& before, Instant now) {
        return DecidePause(before, core.settings.pause_deadline_ms, now);
      }));
  return core.jobs->View(*record);
}

}  // namespace ela::coordinator::ops
