#include "coordinator/background/monitor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/job/job_file.h"
#include "spdlog/spdlog.h"

namespace ela::coordinator {
namespace {

// When this process was itself stopped for so long, nobody's silence in that time says anything.
constexpr int64_t kOwnGapMs = 5'000;

bool MayStop(const v1::JobRecord& record, int32_t attempt) {
  const v1::Attempt* active = ActiveAttempt(record);
  return active != nullptr && active->number() == attempt && record.stop() == v1::STOP_KIND_NONE &&
         (record.job().state() == v1::JOB_STATE_RUNNING ||
          record.job().state() == v1::JOB_STATE_STARTING);
}

bool IsSlowPhase(const std::string& phase) { return phase != "step"; }

}  // namespace

JobTable::Decision DecideHang(const v1::JobRecord& record, int32_t attempt,
                              const std::string& reason, Instant now) {
  if (!MayStop(record, attempt)) return std::optional<Change>();
  Transition transition(record, now, "coordinator");
  transition.record().set_stop(v1::STOP_KIND_HANG);
  transition.record().set_stop_reason(reason);
  transition.Enqueue(v1::EFFECT_KIND_STOP, attempt, 0);
  transition.MoveTo(v1::JOB_STATE_RECOVERING, reason);
  return std::optional<Change>(std::move(transition).Done());
}

JobTable::Decision DecideTimeLimit(const v1::JobRecord& record, int32_t attempt,
                                   int64_t deadline_ms, Instant now) {
  if (!MayStop(record, attempt)) return std::optional<Change>();
  Transition transition(record, now, "coordinator");
  const std::string reason =
      absl::StrCat("resources.time_limit of ", record.job().spec().spec().resources().time_limit(),
                   " is reached");
  transition.record().set_stop(v1::STOP_KIND_TIME_LIMIT);
  transition.record().set_stop_reason(reason);
  transition.Enqueue(v1::EFFECT_KIND_CHECKPOINT_AND_EXIT, attempt, deadline_ms);
  transition.MoveTo(v1::JOB_STATE_PREEMPTING, reason);
  return std::optional<Change>(std::move(transition).Done());
}

JobTable::Decision DecideContact(const v1::JobRecord& record, bool lost, Instant now) {
  const bool known_lost = record.job().contact_lost_unix_ms() != 0;
  if (lost == known_lost || ActiveAttempt(record) == nullptr) return std::optional<Change>();
  Transition transition(record, now, "coordinator");
  transition.job().set_contact_lost_unix_ms(lost ? now.unix_ms : 0);
  transition.Note("contact", lost ? "no heartbeat; the job may well run on" : "heard again");
  return std::optional<Change>(std::move(transition).Done());
}

void Monitor::Tick() {
  const Instant now = core_.jobs->Now();
  const int64_t since = last_tick_mono_ms_ == 0 ? 0 : now.mono_ms - last_tick_mono_ms_;
  last_tick_mono_ms_ = now.mono_ms;
  const int64_t gap_ms = since > kOwnGapMs ? since : 0;
  for (const RecordPtr& record : core_.jobs->Unfinished()) {
    const v1::Attempt* active = ActiveAttempt(*record);
    if (active != nullptr && !active->handle().empty()) Check(*record, *active, now, gap_ms);
  }
}

void Monitor::Check(const v1::JobRecord& record, const v1::Attempt& attempt, Instant now,
                    int64_t gap_ms) {
  const std::string& id = record.job().id();
  int64_t silent_ms = 0, idle_ms = 0, ran_ms = 0, hang_ms = core_.settings.slow_phase_ms;
  core_.jobs->WithLive(id, [&](Live& live) {
    live.BeginAttempt(attempt.number(), now.mono_ms);
    if (gap_ms > 0) {
      live.progress_mono_ms += gap_ms;
      if (live.heartbeat_mono_ms != 0) live.heartbeat_mono_ms += gap_ms;
    }
    const int64_t heard =
        live.heartbeat_mono_ms != 0 ? live.heartbeat_mono_ms : live.progress_mono_ms;
    silent_ms = now.mono_ms - heard;
    idle_ms = now.mono_ms - live.progress_mono_ms;
    ran_ms = now.mono_ms - live.attempt_mono_ms;
    if (!IsSlowPhase(live.phase)) {
      hang_ms = std::max(static_cast<int64_t>(3'000 * live.step_times.P99()),
                         core_.settings.hang_floor_ms);
    }
  });
  const auto apply = [&](auto decide) {
    const auto updated = core_.jobs->Update(id, decide);
    if (!updated.ok()) spdlog::warn("{}: {}", id, updated.status().ToString());
  };
  if (attempt.state() >= v1::ATTEMPT_STATE_INIT) {
    const bool lost = silent_ms > core_.settings.contact_lost_ms;
    if (lost != (record.job().contact_lost_unix_ms() != 0)) {
      apply(
          [&](const v1::JobRecord& before, Instant at) { return DecideContact(before, lost, at); });
    }
  }
  const std::string& limit_text = record.job().spec().spec().resources().time_limit();
  const auto limit_ms = job::ParseDurationMs(limit_text);
  if (!limit_text.empty() && limit_ms.ok() && ran_ms > *limit_ms) {
    apply([&](const v1::JobRecord& before, Instant at) {
      return DecideTimeLimit(before, attempt.number(), core_.settings.pause_deadline_ms, at);
    });
  } else if (idle_ms > hang_ms) {
    const std::string reason = absl::StrCat("no sign of work for more than ", hang_ms / 1000, " s");
    apply([&](const v1::JobRecord& before, Instant at) {
      return DecideHang(before, attempt.number(), reason, at);
    });
  }
}

}  // namespace ela::coordinator
