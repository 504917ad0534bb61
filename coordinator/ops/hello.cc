#include "coordinator/ops/hello.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ops/attempt_key.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

/// The curve and the progress go back to the step that the attempt resumed from.
void Rewind(int64_t first_step, Live* live) {
  if (live->progress.step() > first_step) {
    live->productive_seconds *=
        static_cast<double>(first_step) / static_cast<double>(live->progress.step());
    live->progress.set_step(first_step);
  }
  live->history.RewindTo(first_step);
}

}  // namespace

JobTable::Decision DecideHello(const v1::JobRecord& record, const v1::HelloRequest& request,
                               Instant now) {
  const v1::Attempt* active = ActiveAttempt(record);
  if (active->state() >= v1::ATTEMPT_STATE_INIT) return std::optional<Change>();  // said before
  Transition transition(record, now, "trainer");
  v1::Attempt* attempt = MutableActiveAttempt(&transition.record());
  attempt->set_state(v1::ATTEMPT_STATE_INIT);
  attempt->set_first_step(request.first_step());
  *attempt->mutable_ranks() = request.ranks();
  transition.Note("attempt", absl::StrCat("attempt ", attempt->number(), ": ", request.ranks_size(),
                                          " ranks are up, from step ", request.first_step()));
  if (record.job().state() == v1::JOB_STATE_STARTING) {
    transition.MoveTo(
        v1::JOB_STATE_RUNNING,
        request.first_step() > 0
            ? absl::StrCat("resumed from the checkpoint of step ", request.first_step())
            : "started");
  }
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::HelloResponse> Hello(const Core& core, const v1::HelloRequest& request,
                                        const std::string& token) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr before, FindAttempt(core, request.key(), token));
  const Instant now = core.jobs->Now();
  core.jobs->WithLive(request.key().job(), [&](Live& live) {
    live.BeginAttempt(request.key().attempt(), now.mono_ms);
    live.heartbeat_mono_ms = live.progress_mono_ms = now.mono_ms;
    live.heartbeat_unix_ms = now.unix_ms;
    if (ActiveAttempt(*before)->state() < v1::ATTEMPT_STATE_INIT)
      Rewind(request.first_step(), &live);
  });
  ELA_RETURN_IF_ERROR(
      core.jobs
          ->Update(request.key().job(),
                   [&](const v1::JobRecord& record, Instant at) -> JobTable::Decision {
                     ELA_RETURN_IF_ERROR(CheckAttempt(record, request.key(), token));
                     return DecideHello(record, request, at);
                   })
          .status());
  v1::HelloResponse response;
  response.set_heartbeat_interval_ms(core.settings.heartbeat_interval_ms);
  return response;
}

}  // namespace ela::coordinator::ops
