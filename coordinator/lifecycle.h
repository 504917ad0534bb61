// The states of a job and the only way to change one: a Transition, which carries the events along.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/clock.h"
#include "ela/v1/coordinator_store.pb.h"

namespace ela::coordinator {

bool IsTerminal(v1::JobState state);
/// An attempt may be running: its ranks' slots are taken.
bool HoldsSlots(v1::JobState state);
bool CanMove(v1::JobState from, v1::JobState to);
/// "RUNNING", "USER_ERROR", ...
std::string StateName(v1::JobState state);
std::string OutcomeName(v1::Outcome outcome);

/// "checkpoint failing since step 20: <why>"; empty while none is lost.
std::string CheckpointFailure(const v1::Progress& progress);

/// The newest attempt; null when there is none yet.
const v1::Attempt* NewestAttempt(const v1::JobRecord& record);
/// The newest attempt when it has not ended.
const v1::Attempt* ActiveAttempt(const v1::JobRecord& record);
v1::Attempt* MutableActiveAttempt(v1::JobRecord* record);

/// A decided change of one job: persisted as one batch, then shown.
struct Change {
  v1::JobRecord after;
  std::vector<v1::Event> events;
};

/// Builds a Change. Every call that changes the state or notes something adds one event with the
/// next sequence number.
class Transition {
 public:
  Transition(const v1::JobRecord& before, Instant now, std::string_view actor);

  v1::JobRecord& record() { return after_; }
  v1::Job& job() { return *after_.mutable_job(); }
  /// Moves the job; ends it (end time, empty outbox) when `to` is terminal. A move that CanMove
  /// forbids is a programmer error and ends the process.
  void MoveTo(v1::JobState to, std::string_view reason);
  /// An event that leaves the state as it is.
  void Note(std::string_view type, std::string_view message);
  /// Adds a side effect; an equal one of the same attempt replaces the older.
  void Enqueue(v1::EffectKind kind, int32_t attempt, int64_t grace_ms);
  void DropEffects(v1::EffectKind kind, int32_t attempt);
  Change Done() &&;

 private:
  v1::Event* AddEvent(std::string_view type, std::string_view message);

  v1::JobRecord after_;
  std::vector<v1::Event> events_;
  const Instant now_;
  const std::string actor_;
};

}  // namespace ela::coordinator
