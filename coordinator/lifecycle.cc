#include "coordinator/lifecycle.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ela::coordinator {
namespace {

bool OneOf(v1::JobState state, std::initializer_list<v1::JobState> states) {
  for (const v1::JobState other : states) {
    if (state == other) return true;
  }
  return false;
}

std::string OneLine(std::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return line;
}

}  // namespace

bool IsTerminal(v1::JobState state) {
  return OneOf(state, {v1::JOB_STATE_SUCCEEDED, v1::JOB_STATE_FAILED, v1::JOB_STATE_CANCELLED});
}

bool HoldsSlots(v1::JobState state) {
  return OneOf(state, {v1::JOB_STATE_STARTING, v1::JOB_STATE_RUNNING, v1::JOB_STATE_PREEMPTING,
                       v1::JOB_STATE_RECOVERING, v1::JOB_STATE_CANCELLING});
}

bool CanMove(v1::JobState from, v1::JobState to) {
  switch (from) {
    case v1::JOB_STATE_UNSPECIFIED:
      return to == v1::JOB_STATE_ACCEPTED;
    case v1::JOB_STATE_ACCEPTED:
      return OneOf(to, {v1::JOB_STATE_QUEUED, v1::JOB_STATE_CANCELLED});
    case v1::JOB_STATE_QUEUED:
      return OneOf(to, {v1::JOB_STATE_STARTING, v1::JOB_STATE_PAUSED, v1::JOB_STATE_HELD,
                        v1::JOB_STATE_CANCELLED});
    case v1::JOB_STATE_STARTING:
    case v1::JOB_STATE_RUNNING:
      return OneOf(to, {v1::JOB_STATE_PREEMPTING, v1::JOB_STATE_RECOVERING,
                        v1::JOB_STATE_CANCELLING, v1::JOB_STATE_SUCCEEDED, v1::JOB_STATE_FAILED,
                        v1::JOB_STATE_BACKOFF, v1::JOB_STATE_QUEUED}) ||
             (from == v1::JOB_STATE_STARTING && to == v1::JOB_STATE_RUNNING);
    case v1::JOB_STATE_PREEMPTING:
      return OneOf(to, {v1::JOB_STATE_PAUSED, v1::JOB_STATE_CANCELLING, v1::JOB_STATE_SUCCEEDED,
                        v1::JOB_STATE_FAILED, v1::JOB_STATE_QUEUED});
    case v1::JOB_STATE_RECOVERING:
      return OneOf(to, {v1::JOB_STATE_BACKOFF, v1::JOB_STATE_PREEMPTING, v1::JOB_STATE_CANCELLING,
                        v1::JOB_STATE_SUCCEEDED, v1::JOB_STATE_FAILED, v1::JOB_STATE_QUEUED});
    case v1::JOB_STATE_CANCELLING:
      return to == v1::JOB_STATE_CANCELLED;
    case v1::JOB_STATE_PAUSED:
    case v1::JOB_STATE_HELD:
      return OneOf(to, {v1::JOB_STATE_QUEUED, v1::JOB_STATE_CANCELLED});
    case v1::JOB_STATE_BACKOFF:
      return OneOf(to, {v1::JOB_STATE_QUEUED, v1::JOB_STATE_PAUSED, v1::JOB_STATE_CANCELLED});
    case v1::JOB_STATE_SUCCEEDED:
    case v1::JOB_STATE_FAILED:
    case v1::JOB_STATE_CANCELLED:
      return false;
    case v1::JobState_INT_MIN_SENTINEL_DO_NOT_USE_:
    case v1::JobState_INT_MAX_SENTINEL_DO_NOT_USE_:
      return false;
  }
  return false;
}

std::string StateName(v1::JobState state) {
  return std::string(absl::StripPrefix(v1::JobState_Name(state), "JOB_STATE_"));
}

std::string OutcomeName(v1::Outcome outcome) {
  return std::string(absl::StripPrefix(v1::Outcome_Name(outcome), "OUTCOME_"));
}

std::string CheckpointFailure(const v1::Progress& progress) {
  if (progress.checkpoint_failing_since_step() == 0) return "";
  return absl::StrCat("checkpoint failing since step ", progress.checkpoint_failing_since_step(),
                      ": ", progress.checkpoint_error());
}

const v1::Attempt* NewestAttempt(const v1::JobRecord& record) {
  const int count = record.job().attempts_size();
  return count == 0 ? nullptr : &record.job().attempts(count - 1);
}

const v1::Attempt* ActiveAttempt(const v1::JobRecord& record) {
  const v1::Attempt* newest = NewestAttempt(record);
  return newest != nullptr && newest->state() != v1::ATTEMPT_STATE_ENDED ? newest : nullptr;
}

v1::Attempt* MutableActiveAttempt(v1::JobRecord* record) {
  return const_cast<v1::Attempt*>(ActiveAttempt(*record));
}

Transition::Transition(const v1::JobRecord& before, Instant now, std::string_view actor)
    : after_(before), now_(now), actor_(actor) {}

v1::Event* Transition::AddEvent(std::string_view type, std::string_view message) {
  after_.set_last_sequence(after_.last_sequence() + 1);
  v1::Event& event = events_.emplace_back();
  event.set_sequence(after_.last_sequence());
  event.set_unix_ms(now_.unix_ms);
  event.set_type(std::string(type));
  event.set_message(OneLine(message));
  event.set_from(after_.job().state());
  event.set_to(after_.job().state());
  event.set_actor(actor_);
  if (const v1::Attempt* newest = NewestAttempt(after_)) event.set_attempt(newest->number());
  return &event;
}

void Transition::MoveTo(v1::JobState to, std::string_view reason) {
  const v1::JobState from = job().state();
  if (!CanMove(from, to)) {
    std::fprintf(stderr, "coordinator: job %s cannot move from %s to %s\n", job().id().c_str(),
                 StateName(from).c_str(), StateName(to).c_str());
    std::abort();
  }
  AddEvent(from == v1::JOB_STATE_UNSPECIFIED ? "submitted" : "state", reason)->set_to(to);
  job().set_state(to);
  job().set_reason(OneLine(reason));
  if (to != v1::JOB_STATE_BACKOFF) job().set_next_retry_unix_ms(0);
  if (!IsTerminal(to)) return;
  job().set_ended_unix_ms(now_.unix_ms);
  job().set_contact_lost_unix_ms(0);
  after_.clear_outbox();
  after_.set_stop(v1::STOP_KIND_NONE);
}

void Transition::Note(std::string_view type, std::string_view message) { AddEvent(type, message); }

void Transition::Enqueue(v1::EffectKind kind, int32_t attempt, int64_t grace_ms) {
  DropEffects(kind, attempt);
  v1::Effect* effect = after_.add_outbox();
  effect->set_kind(kind);
  effect->set_attempt(attempt);
  effect->set_grace_ms(grace_ms);
}

void Transition::DropEffects(v1::EffectKind kind, int32_t attempt) {
  auto* outbox = after_.mutable_outbox();
  for (int i = outbox->size() - 1; i >= 0; --i) {
    if (outbox->Get(i).kind() == kind && outbox->Get(i).attempt() == attempt) {
      outbox->DeleteSubrange(i, 1);
    }
  }
}

Change Transition::Done() && {
  job().set_version(job().version() + 1);
  return {std::move(after_), std::move(events_)};
}

}  // namespace ela::coordinator
