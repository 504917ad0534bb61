#include "coordinator/background/outbox.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/outcome.h"
#include "proto/job/job_file.h"
#include "spdlog/spdlog.h"

namespace ela::coordinator {
namespace {

bool IsActive(const v1::JobRecord& record, int32_t attempt) {
  const v1::Attempt* active = ActiveAttempt(record);
  return active != nullptr && active->number() == attempt;
}

JobTable::Decision DecideDone(const v1::JobRecord& record, const v1::Effect& effect, Instant now) {
  Transition transition(record, now, "coordinator");
  transition.DropEffects(effect.kind(), effect.attempt());
  return std::optional<Change>(std::move(transition).Done());
}

LaunchSpec SpecOf(const Core& core, const v1::JobRecord& record, int32_t attempt) {
  LaunchSpec spec;
  spec.key = {record.job().id(), attempt};
  spec.ranks = record.ranks();
  spec.run_dir = record.job().run_dir();
  spec.job_yaml = job::ToYaml(record.job().spec());
  spec.coordinator = core.settings.address;
  const auto token = record.tokens().find(attempt);
  if (token != record.tokens().end()) spec.token = token->second;
  return spec;
}

}  // namespace

JobTable::Decision DecideLaunched(const v1::JobRecord& record, int32_t attempt,
                                  const std::string& handle, Instant now) {
  if (!IsActive(record, attempt)) return std::optional<Change>();
  Transition transition(record, now, "coordinator");
  v1::Attempt* active = MutableActiveAttempt(&transition.record());
  active->set_handle(handle);
  // The ranks may have said hello before.
  if (active->state() < v1::ATTEMPT_STATE_LAUNCHED) active->set_state(v1::ATTEMPT_STATE_LAUNCHED);
  transition.DropEffects(v1::EFFECT_KIND_LAUNCH, attempt);
  transition.Note("attempt", absl::StrCat("attempt ", attempt, " is launched as ", handle));
  return std::optional<Change>(std::move(transition).Done());
}

void Outbox::Tick() {
  for (const RecordPtr& listed : core_.jobs->Unfinished()) {
    // An effect may bring others or make them needless, so look again after each.
    while (true) {
      const RecordPtr record = core_.jobs->Find(listed->job().id());
      if (record->outbox().empty() || !CarryOut(*record, record->outbox(0))) break;
    }
  }
}

bool Outbox::CarryOut(const v1::JobRecord& record, const v1::Effect& effect) {
  const std::string& id = record.job().id();
  absl::Status status;
  if (IsActive(record, effect.attempt())) {
    const std::string& handle = ActiveAttempt(record)->handle();
    switch (effect.kind()) {
      case v1::EFFECT_KIND_LAUNCH:
        return Launch(record, effect.attempt());
      case v1::EFFECT_KIND_CHECKPOINT_AND_EXIT:
        status = core_.launcher->Signal(handle, effect.grace_ms());
        break;
      case v1::EFFECT_KIND_STOP:
        status =
            core_.launcher->Stop(handle, effect.grace_ms(), record.stop() == v1::STOP_KIND_HANG);
        break;
      case v1::EFFECT_KIND_UNSPECIFIED:
      case v1::EffectKind_INT_MIN_SENTINEL_DO_NOT_USE_:
      case v1::EffectKind_INT_MAX_SENTINEL_DO_NOT_USE_:
        break;
    }
  }
  if (!status.ok()) {
    spdlog::warn("{}: attempt {} could not be told to stop: {}", id, effect.attempt(),
                 status.ToString());
    return false;
  }
  return core_.jobs
      ->Update(id, [&](const v1::JobRecord& before,
                       Instant now) { return DecideDone(before, effect, now); })
      .ok();
}

bool Outbox::Launch(const v1::JobRecord& record, int32_t attempt) {
  const std::string& id = record.job().id();
  absl::StatusOr<std::optional<std::string>> found = core_.launcher->Find({id, attempt});
  if (!found.ok()) return false;
  if (!found->has_value()) {
    if (record.stop() == v1::STOP_KIND_CANCEL) {
      return EndUnlaunched(id, attempt, v1::OUTCOME_CANCELLED, record.stop_reason());
    }
    if (record.stop() != v1::STOP_KIND_NONE) {
      return EndUnlaunched(id, attempt, v1::OUTCOME_PREEMPTED, "stopped before it was launched");
    }
    const absl::StatusOr<std::string> handle =
        core_.launcher->Launch(SpecOf(core_, record, attempt));
    if (handle.ok()) {
      found = std::optional<std::string>(*handle);
    } else if (handle.status().code() == absl::StatusCode::kAlreadyExists) {
      return false;  // found at the next look
    } else if (handle.status().code() == absl::StatusCode::kResourceExhausted) {
      spdlog::warn("{}: attempt {} waits: {}", id, attempt, std::string(handle.status().message()));
      return false;  // goes on by itself when there is space again
    } else {
      return EndUnlaunched(id, attempt, v1::OUTCOME_LAUNCH_FAILED,
                           absl::StrCat("could not be launched: ", handle.status().message()));
    }
  }
  return core_.jobs
      ->Update(id, [&](const v1::JobRecord& before,
                       Instant now) { return DecideLaunched(before, attempt, **found, now); })
      .ok();
}

bool Outbox::EndUnlaunched(const std::string& id, int32_t attempt, v1::Outcome outcome,
                           const std::string& reason) {
  const double jitter = RandomUnit(core_.random);
  return core_.jobs
      ->Update(id,
               [&](const v1::JobRecord& before, Instant now) -> JobTable::Decision {
                 if (!IsActive(before, attempt)) return std::optional<Change>();
                 AttemptEnd end;
                 end.outcome = outcome;
                 end.reason = reason;
                 return std::optional<Change>(DecideAttemptEnded(before, end, now, jitter));
               })
      .ok();
}

}  // namespace ela::coordinator
