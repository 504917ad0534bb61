#include "coordinator/ops/report_steps.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ops/attempt_key.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

void TakeReport(const v1::ReportStepsRequest& request, int64_t total_steps, Instant now,
                Live* live) {
  const int64_t steps = request.progress().step() - live->progress.step();
  const double seconds = request.progress().step_seconds();
  if (steps > 0 && seconds > 0) live->productive_seconds += seconds * static_cast<double>(steps);
  live->progress = request.progress();
  live->progress.set_total_steps(total_steps);
  live->step_times.Add(seconds);
  const int64_t left = std::max<int64_t>(total_steps - request.progress().step(), 0);
  live->progress.set_eta_seconds(static_cast<double>(left) * live->step_times.Mean());
  for (const v1::StepPoint& point : request.points()) live->history.Add(point);
  live->progress_mono_ms = live->heartbeat_mono_ms = now.mono_ms;
  live->heartbeat_unix_ms = now.unix_ms;
}

}  // namespace

JobTable::Decision DecideFirstStep(const v1::JobRecord& record, Instant now) {
  if (ActiveAttempt(record)->state() >= v1::ATTEMPT_STATE_STEPPING) return std::optional<Change>();
  Transition transition(record, now, "trainer");
  v1::Attempt* attempt = MutableActiveAttempt(&transition.record());
  attempt->set_state(v1::ATTEMPT_STATE_STEPPING);
  if (record.job().started_unix_ms() == 0) transition.job().set_started_unix_ms(now.unix_ms);
  transition.Note("attempt", absl::StrCat("attempt ", attempt->number(), " makes steps"));
  return std::optional<Change>(std::move(transition).Done());
}

JobTable::Decision DecideCheckpointFailure(const v1::JobRecord& record, const v1::Progress& told,
                                           Instant now) {
  const v1::Progress& known = record.job().progress();
  // A report that a commit has overtaken is old.
  const bool failing = told.checkpoint_failing_since_step() > known.last_checkpoint_step();
  const int64_t since = failing ? told.checkpoint_failing_since_step() : 0;
  if (since == known.checkpoint_failing_since_step()) return std::optional<Change>();
  Transition transition(record, now, "trainer");
  v1::Progress* progress = transition.job().mutable_progress();
  progress->set_checkpoint_failing_since_step(since);
  progress->set_checkpoint_error(failing ? told.checkpoint_error() : "");
  if (failing) transition.Note("checkpoint", CheckpointFailure(*progress));
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::ReportStepsResponse> ReportSteps(const Core& core,
                                                    const v1::ReportStepsRequest& request,
                                                    const std::string& token) {
  const std::string& id = request.key().job();
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, FindAttempt(core, request.key(), token));
  const Instant now = core.jobs->Now();
  const int64_t total_steps = record->job().spec().spec().training().steps();
  core.jobs->WithLive(id, [&](Live& live) {
    live.BeginAttempt(request.key().attempt(), now.mono_ms);
    TakeReport(request, total_steps, now, &live);
  });
  const auto update = [&](auto decide) {
    return core.jobs
        ->Update(id,
                 [&](const v1::JobRecord& before, Instant at) -> JobTable::Decision {
                   ELA_RETURN_IF_ERROR(CheckAttempt(before, request.key(), token));
                   return decide(before, at);
                 })
        .status();
  };
  if (ActiveAttempt(*record)->state() < v1::ATTEMPT_STATE_STEPPING) {
    ELA_RETURN_IF_ERROR(update(DecideFirstStep));
  }
  if (request.progress().checkpoint_failing_since_step() !=
      record->job().progress().checkpoint_failing_since_step()) {
    ELA_RETURN_IF_ERROR(update([&](const v1::JobRecord& before, Instant at) {
      return DecideCheckpointFailure(before, request.progress(), at);
    }));
  }
  core.jobs->Notify(id);
  return v1::ReportStepsResponse();
}

}  // namespace ela::coordinator::ops
