#include "coordinator/ops/heartbeat.h"

#include "coordinator/ops/attempt_key.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::HeartbeatResponse> Heartbeat(const Core& core,
                                                const v1::HeartbeatRequest& request,
                                                const std::string& token) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, FindAttempt(core, request.key(), token));
  const Instant now = core.jobs->Now();
  core.jobs->WithLive(request.key().job(), [&](Live& live) {
    live.BeginAttempt(request.key().attempt(), now.mono_ms);
    live.heartbeat_mono_ms = now.mono_ms;
    live.heartbeat_unix_ms = now.unix_ms;
    // The thread that sends this lives on when the training hangs: only a new step or phase is work
    // done.
    if (request.step() > live.progress.step() || request.phase() != live.phase) {
      live.progress_mono_ms = now.mono_ms;
    }
    live.phase = request.phase();
  });
  v1::HeartbeatResponse response;
  response.set_checkpoint_and_exit(record->stop() != v1::STOP_KIND_NONE &&
                                   record->stop() != v1::STOP_KIND_HANG);
  return response;
}

}  // namespace ela::coordinator::ops
