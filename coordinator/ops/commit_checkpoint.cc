#include "coordinator/ops/commit_checkpoint.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ops/attempt_key.h"
#include "proto/program/format.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideCommitted(const v1::JobRecord& record, int64_t step, int64_t bytes,
                                   Instant now) {
  // Told again, or a step that an attempt made a second time: not progress.
  if (step <= record.job().progress().last_checkpoint_step()) return std::optional<Change>();
  Transition transition(record, now, "trainer");
  v1::Progress* progress = transition.job().mutable_progress();
  progress->set_last_checkpoint_step(step);
  progress->set_last_checkpoint_unix_ms(now.unix_ms);
  progress->clear_checkpoint_failing_since_step();
  progress->clear_checkpoint_error();
  transition.job().set_failures(0);
  transition.record().set_same_errors(0);
  transition.record().clear_last_error();
  transition.Note("checkpoint",
                  absl::StrCat("checkpoint of step ", step, ", ", FormatBytes(bytes)));
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::CommitCheckpointResponse> CommitCheckpoint(
    const Core& core, const v1::CommitCheckpointRequest& request, const std::string& token) {
  // Decided among the writers: an attempt cannot be ended between the question and the answer.
  ELA_RETURN_IF_ERROR(
      core.jobs
          ->Update(request.key().job(),
                   [&](const v1::JobRecord& record, Instant now) -> JobTable::Decision {
                     ELA_RETURN_IF_ERROR(CheckAttempt(record, request.key(), token));
                     if (!request.committed()) return std::optional<Change>();
                     return DecideCommitted(record, request.step(), request.bytes(), now);
                   })
          .status());
  const int64_t now_mono_ms = core.jobs->Now().mono_ms;
  core.jobs->WithLive(request.key().job(),
                      [&](Live& live) { live.progress_mono_ms = now_mono_ms; });
  return v1::CommitCheckpointResponse();
}

}  // namespace ela::coordinator::ops
