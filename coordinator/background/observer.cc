#include "coordinator/background/observer.h"

#include <algorithm>
#include <utility>

#include "coordinator/outcome.h"
#include "spdlog/spdlog.h"

namespace ela::coordinator {

void LoadHistory(const Core& core, const v1::Job& job) {
  bool loaded = false;
  core.jobs->ReadLive(job.id(), [&](const Live& live) { loaded = live.history_loaded; });
  if (loaded) return;
  v1::Progress progress;
  LossHistory history = LossHistory::FromMetricsFile(job.run_dir() + "/metrics.jsonl", &progress);
  core.jobs->WithLive(job.id(), [&](Live& live) {
    if (live.history_loaded) return;
    live.history_loaded = true;
    // Points that were reported meanwhile are newer than the file's.
    for (const v1::StepPoint& point : live.history.After(-1, SIZE_MAX)) history.Add(point);
    live.history = std::move(history);
    if (progress.step() <= live.progress.step()) return;
    progress.set_total_steps(job.spec().spec().training().steps());
    live.progress = progress;
  });
}

void Observer::Adopt() {
  const Instant now = core_.jobs->Now();
  for (const RecordPtr& record : core_.jobs->Unfinished()) {
    if (NewestAttempt(*record) != nullptr) LoadHistory(core_, record->job());
    const v1::Attempt* active = ActiveAttempt(*record);
    if (active == nullptr) continue;
    core_.jobs->WithLive(record->job().id(), [&](Live& live) {
      live.BeginAttempt(active->number(), now.mono_ms);
      live.attempt_mono_ms -= std::max<int64_t>(now.unix_ms - active->started_unix_ms(), 0);
    });
  }
  const auto owned = core_.launcher->ListOwned();
  if (!owned.ok()) {
    spdlog::warn("cannot list running attempts: {}", owned.status().ToString());
    return;
  }
  for (const LaunchKey& key : *owned) {
    const RecordPtr record = core_.jobs->Find(key.job_id);
    const v1::Attempt* active = record == nullptr ? nullptr : ActiveAttempt(*record);
    if (active != nullptr && active->number() == key.attempt) {
      spdlog::info("{}: attempt {} runs on", key.job_id, key.attempt);
      continue;
    }
    const auto handle = core_.launcher->Find(key);
    if (!handle.ok() || !handle->has_value()) continue;
    spdlog::warn("{}: attempt {} belongs to no job and is stopped", key.job_id, key.attempt);
    (void)core_.launcher->Stop(**handle, 0, false);
  }
}

void Observer::Tick() {
  for (const RecordPtr& record : core_.jobs->Unfinished()) {
    const v1::Attempt* active = ActiveAttempt(*record);
    if (active != nullptr && !active->handle().empty()) Look(*record, *active);
  }
}

void Observer::Look(const v1::JobRecord& record, const v1::Attempt& attempt) {
  const std::string& id = record.job().id();
  const absl::StatusOr<Observation> seen = core_.launcher->Observe(attempt.handle());
  if (!seen.ok()) return;
  if (!seen->ended) {
    const int64_t now_mono_ms = core_.jobs->Now().mono_ms;
    core_.jobs->WithLive(id, [&](Live& live) {
      live.BeginAttempt(attempt.number(), now_mono_ms);
      if (seen->activity == live.activity) return;
      live.activity = seen->activity;
      live.progress_mono_ms = now_mono_ms;
    });
    return;
  }
  const double jitter = RandomUnit(core_.random);
  const auto updated =
      core_.jobs->Update(id, [&](const v1::JobRecord& before, Instant now) -> JobTable::Decision {
        const v1::Attempt* active = ActiveAttempt(before);
        if (active == nullptr || active->number() != attempt.number()) {
          return std::optional<Change>();
        }
        const AttemptEnd end = Classify(seen->exit, before.stop(), before.stop_reason());
        return std::optional<Change>(DecideAttemptEnded(before, end, now, jitter));
      });
  if (!updated.ok()) return;  // the next tick sees it again
  spdlog::info("{}: {}: {}", id, StateName((*updated)->job().state()), (*updated)->job().reason());
  (void)core_.launcher->Forget(attempt.handle());
}

}  // namespace ela::coordinator
