#include "coordinator/background/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/scheduler/gang_queue.h"

namespace ela::coordinator {
namespace {

constexpr int kTokenDigits = 32;
constexpr int64_t kLongestWaitMs =
    10 * 60 * 1000;  // a clock that was set must not hold a retry longer

JobTable::Decision DecideRetry(const v1::JobRecord& record, Instant now) {
  if (record.job().state() != v1::JOB_STATE_BACKOFF) return std::optional<Change>();
  Transition transition(record, now, "coordinator");
  transition.MoveTo(v1::JOB_STATE_QUEUED, "retries");
  return std::optional<Change>(std::move(transition).Done());
}

}  // namespace

JobTable::Decision DecideStart(const v1::JobRecord& record, const std::string& token, Instant now) {
  if (record.job().state() != v1::JOB_STATE_QUEUED) return std::optional<Change>();
  Transition transition(record, now, "coordinator");
  v1::Attempt* attempt = transition.job().add_attempts();
  attempt->set_number(record.job().attempts_size() + 1);
  attempt->set_state(v1::ATTEMPT_STATE_INTENT);
  attempt->set_failed_rank(-1);
  attempt->set_started_unix_ms(now.unix_ms);
  (*transition.record().mutable_tokens())[attempt->number()] = token;
  transition.record().set_stop(v1::STOP_KIND_NONE);
  transition.record().set_committed_at_start(record.job().progress().last_checkpoint_step());
  transition.Enqueue(v1::EFFECT_KIND_LAUNCH, attempt->number(), 0);
  transition.MoveTo(v1::JOB_STATE_STARTING, absl::StrCat("starts attempt ", attempt->number()));
  return std::optional<Change>(std::move(transition).Done());
}

void Scheduler::EndBackoffs() {
  const Instant now = core_.jobs->Now();
  for (const RecordPtr& record : core_.jobs->Unfinished()) {
    if (record->job().state() != v1::JOB_STATE_BACKOFF) continue;
    bool over = false;
    core_.jobs->WithLive(record->job().id(), [&](Live& live) {
      const int64_t due = record->job().next_retry_unix_ms();
      if (live.retry_unix_ms != due || live.retry_mono_ms == 0) {
        live.retry_unix_ms = due;
        live.retry_mono_ms =
            now.mono_ms + std::clamp<int64_t>(due - now.unix_ms, 0, kLongestWaitMs);
      }
      over = now.mono_ms >= live.retry_mono_ms;
    });
    // A write that failed is tried again at the next tick.
    if (over) (void)core_.jobs->Update(record->job().id(), DecideRetry);
  }
}

void Scheduler::Tick() {
  EndBackoffs();
  const Schedule schedule = PlanSchedule(core_.jobs->Unfinished(), core_.settings.slots);
  for (const auto& [id, why] : schedule.waiting) {
    bool changed = false;
    core_.jobs->WithLive(id, [&, text = &why](Live& live) {
      changed = live.queue_reason != *text;
      live.queue_reason = *text;
    });
    if (changed) core_.jobs->Notify(id);
  }
  for (const std::string& id : schedule.start) {
    const std::string token = RandomHex(core_.random, kTokenDigits);
    (void)core_.jobs->Update(id, [&](const v1::JobRecord& record, Instant now) {
      return DecideStart(record, token, now);
    });
  }
}

}  // namespace ela::coordinator
