#include "coordinator/outcome.h"

#include <signal.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/job/job_file.h"

namespace ela::coordinator {
namespace {

// Exit codes of ela-trainer.
constexpr int kNeverRetry = 93;
constexpr int kStoppedOnRequest = 75;
constexpr int kSuperseded = 76;

constexpr int kSameErrorLimit = 3;
constexpr int64_t kLongestBackoffMs = 5 * 60 * 1000;

std::string SignalText(int signal) {
  return absl::StrCat("signal ", signal, " (", strsignal(signal), ")");
}

/// The earliest failure that a rank recorded; null when none did.
const RankExit* FirstFailure(const ExitRecord& exit) {
  const RankExit* first = nullptr;
  for (const RankExit& rank : exit.ranks) {
    if (rank.exit_code == 0 || rank.exit_code == kStoppedOnRequest) continue;
    if (first == nullptr || rank.unix_ms < first->unix_ms) first = &rank;
  }
  return first;
}

bool AnyRankLeftWith(const ExitRecord& exit, int code) {
  return std::any_of(exit.ranks.begin(), exit.ranks.end(),
                     [&](const RankExit& rank) { return rank.exit_code == code; });
}

/// Whether mpirun tells of a rank that left without a record: it then asked the others to stop.
bool LostARank(const ExitRecord& exit) {
  return exit.failed_rank >= 0 && exit.exit_code != kStoppedOnRequest &&
         std::none_of(exit.ranks.begin(), exit.ranks.end(),
                      [&](const RankExit& rank) { return rank.rank == exit.failed_rank; });
}

v1::Outcome OutcomeOfRank(const RankExit& rank) {
  if (rank.exit_code == kNeverRetry || rank.outcome == "user_error") return v1::OUTCOME_USER_ERROR;
  if (rank.outcome == "out_of_memory") return v1::OUTCOME_OUT_OF_MEMORY;
  if (rank.outcome == "disk_full") return v1::OUTCOME_DISK_FULL;
  return v1::OUTCOME_INFRA;
}

AttemptEnd ByItself(const ExitRecord& exit) {
  AttemptEnd end{v1::OUTCOME_INFRA, "", exit.exit_code, exit.signal, exit.failed_rank};
  const RankExit* first = FirstFailure(exit);
  if (exit.exit_code == 0 && exit.signal == 0 && first == nullptr) {
    end.outcome = v1::OUTCOME_OK;
  } else if (exit.failed_signal != 0 && (first == nullptr || first->exit_code != kNeverRetry)) {
    // A rank that was killed left no record; what the others recorded is only that they lost it.
    end.signal = exit.failed_signal;
    end.reason =
        absl::StrCat("rank ", exit.failed_rank, " was ended by ", SignalText(exit.failed_signal));
  } else if (first != nullptr) {
    end.outcome = OutcomeOfRank(*first);
    end.failed_rank = first->rank;
    end.exit_code = first->exit_code;
    // What the ranks agreed on names the one it came from.
    const bool named = absl::StartsWith(first->reason, "rank ");
    end.reason = absl::StrCat(
        named ? "" : absl::StrCat("rank ", first->rank, ": "),
        first->reason.empty() ? absl::StrCat("exit code ", first->exit_code) : first->reason);
  } else if (exit.exit_code == kNeverRetry) {
    end.outcome = v1::OUTCOME_USER_ERROR;
    end.reason = "the trainer refused the job (exit code 93); see its log";
  } else if (exit.exit_code == kStoppedOnRequest ||
             (AnyRankLeftWith(exit, kStoppedOnRequest) && !LostARank(exit))) {
    end.outcome = v1::OUTCOME_PREEMPTED;
    end.reason = "the ranks were asked to stop from outside";
  } else if (!exit.reason.empty()) {
    end.outcome = exit.exit_code == 127 ? v1::OUTCOME_LAUNCH_FAILED : v1::OUTCOME_INFRA;
    end.reason = exit.reason;
  } else if (exit.exit_code == kSuperseded) {
    end.reason = "the trainer believes that a newer attempt exists (exit code 76)";
  } else if (exit.signal != 0) {
    end.reason = absl::StrCat("mpirun was ended by ", SignalText(exit.signal));
  } else {
    end.reason =
        exit.failed_rank >= 0
            ? absl::StrCat("rank ", exit.failed_rank, " left with exit code ", exit.exit_code)
            : absl::StrCat("mpirun left with exit code ", exit.exit_code);
  }
  return end;
}

bool CountsAsFailure(v1::Outcome outcome) {
  switch (outcome) {
    case v1::OUTCOME_INFRA:
    case v1::OUTCOME_HANG:
    case v1::OUTCOME_OUT_OF_MEMORY:
    case v1::OUTCOME_DISK_FULL:
    case v1::OUTCOME_LAUNCH_FAILED:
    case v1::OUTCOME_LOST:
    case v1::OUTCOME_UNSPECIFIED:
      return true;
    case v1::OUTCOME_OK:
    case v1::OUTCOME_USER_ERROR:
    case v1::OUTCOME_PREEMPTED:
    case v1::OUTCOME_TIMEOUT:
    case v1::OUTCOME_CANCELLED:
      return false;
    case v1::Outcome_INT_MIN_SENTINEL_DO_NOT_USE_:
    case v1::Outcome_INT_MAX_SENTINEL_DO_NOT_USE_:
      return true;
  }
  return true;
}

/// Counts the failure, then retries or gives up.
void Retry(Transition* transition, const std::string& reason, Instant now, double jitter) {
  v1::JobRecord& record = transition->record();
  v1::Job& job = transition->job();
  const bool progressed = job.progress().last_checkpoint_step() > record.committed_at_start();
  record.set_same_errors(!progressed && record.last_error() == reason ? record.same_errors() + 1
                                                                      : 1);
  record.set_last_error(reason);
  job.set_failures(progressed ? 1 : job.failures() + 1);
  const int64_t budget = job.spec().spec().restart().max_failures();
  if (job.failures() > budget) {
    transition->MoveTo(v1::JOB_STATE_FAILED,
                       absl::StrCat(reason, " (failure ", job.failures(),
                                    " without progress; restart.max_failures is ", budget, ")"));
  } else if (record.same_errors() >= kSameErrorLimit) {
    transition->MoveTo(v1::JOB_STATE_FAILED,
                       absl::StrCat(reason, " (the same error in ", kSameErrorLimit,
                                    " attempts without progress)"));
  } else {
    const int64_t wait_ms = BackoffMs(record, job.failures(), jitter);
    transition->MoveTo(v1::JOB_STATE_BACKOFF,
                       absl::StrCat(reason, "; retry ", job.failures(), " of ", budget));
    job.set_next_retry_unix_ms(now.unix_ms + wait_ms);
  }
}

/// What a stop without a last checkpoint leaves, and why there is none as far as the ranks have
/// told.
void AddWhatIsLost(const v1::JobRecord& before, std::string* reason) {
  const std::string failure = CheckpointFailure(before.job().progress());
  if (!failure.empty()) absl::StrAppend(reason, " (", failure, ")");
  const int64_t step =
      std::max(before.job().progress().last_checkpoint_step(), ActiveAttempt(before)->first_step());
  if (before.stop() == v1::STOP_KIND_PAUSE) {
    absl::StrAppend(reason, "; a resume goes on ",
                    step > 0 ? absl::StrCat("from step ", step) : "from the start");
  } else {
    absl::StrAppend(reason, step > 0 ? absl::StrCat("; the last checkpoint is of step ", step)
                                     : "; there is no checkpoint");
  }
}

void EndAttempt(Transition* transition, const AttemptEnd& end, Instant now) {
  v1::JobRecord& record = transition->record();
  v1::Attempt* attempt = MutableActiveAttempt(&record);
  const int32_t number = attempt->number();
  attempt->set_state(v1::ATTEMPT_STATE_ENDED);
  attempt->set_outcome(end.outcome);
  attempt->set_reason(end.reason);
  attempt->set_ended_unix_ms(now.unix_ms);
  attempt->set_exit_code(end.exit_code);
  attempt->set_signal(end.signal);
  attempt->set_failed_rank(end.failed_rank);
  record.mutable_tokens()->erase(number);
  for (const v1::EffectKind kind :
       {v1::EFFECT_KIND_LAUNCH, v1::EFFECT_KIND_CHECKPOINT_AND_EXIT, v1::EFFECT_KIND_STOP}) {
    transition->DropEffects(kind, number);
  }
  transition->job().set_contact_lost_unix_ms(0);
  transition->job().mutable_progress()->clear_checkpoint_failing_since_step();
  transition->job().mutable_progress()->clear_checkpoint_error();
  // The reason comes with the change of the state.
  transition->Note("attempt",
                   absl::StrCat("attempt ", number, " ended: ", OutcomeName(end.outcome)));
}

}  // namespace

AttemptEnd Classify(const ExitRecord& exit, v1::StopKind stop, const std::string& stop_reason) {
  AttemptEnd end = ByItself(exit);
  if (stop == v1::STOP_KIND_CANCEL) {
    end.outcome = v1::OUTCOME_CANCELLED;
    end.reason = stop_reason;
    return end;
  }
  // What ended by itself before the request reached it is what it says it is.
  if (end.outcome == v1::OUTCOME_OK || end.outcome == v1::OUTCOME_USER_ERROR) return end;
  const bool asked = stop == v1::STOP_KIND_PAUSE || stop == v1::STOP_KIND_TIME_LIMIT;
  end.without_checkpoint = asked && (exit.forced || end.outcome != v1::OUTCOME_PREEMPTED);
  // How those went that were ended by force says nothing of why they had to be.
  const std::string why = exit.forced ? "none in time" : end.reason;
  const std::string lost =
      end.without_checkpoint ? absl::StrCat(" without a last checkpoint: ", why) : "";
  if (stop == v1::STOP_KIND_PAUSE) {
    if (exit.forced) end.outcome = v1::OUTCOME_PREEMPTED;
    end.reason = absl::StrCat("paused", lost);
  } else if (stop == v1::STOP_KIND_TIME_LIMIT) {
    end.outcome = v1::OUTCOME_TIMEOUT;
    end.reason = absl::StrCat(stop_reason, lost.empty() ? "" : "; ended", lost);
  } else if (stop == v1::STOP_KIND_HANG) {
    end.outcome = v1::OUTCOME_HANG;
    end.reason = stop_reason;
  }
  return end;
}

int64_t BackoffMs(const v1::JobRecord& record, int failures, double jitter) {
  const auto first = job::ParseDurationMs(record.job().spec().spec().restart().backoff());
  int64_t wait_ms = first.ok() ? std::max<int64_t>(*first, 0) : 1000;
  for (int i = 1; i < failures && wait_ms < kLongestBackoffMs; ++i) wait_ms *= 2;
  wait_ms = std::min(wait_ms, kLongestBackoffMs);
  return static_cast<int64_t>(static_cast<double>(wait_ms) * (0.75 + 0.5 * jitter));
}

Change DecideAttemptEnded(const v1::JobRecord& before, AttemptEnd end, Instant now, double jitter) {
  Transition transition(before, now, "coordinator");
  const v1::StopKind stop = before.stop();
  if (end.without_checkpoint) AddWhatIsLost(before, &end.reason);
  EndAttempt(&transition, end, now);
  transition.record().set_stop(v1::STOP_KIND_NONE);
  transition.record().clear_stop_reason();
  if (stop == v1::STOP_KIND_CANCEL) {
    transition.MoveTo(v1::JOB_STATE_CANCELLED, end.reason);
  } else if (end.outcome == v1::OUTCOME_OK) {
    transition.record().mutable_job()->set_failures(0);
    transition.MoveTo(v1::JOB_STATE_SUCCEEDED, "all steps are done");
  } else if (end.outcome == v1::OUTCOME_USER_ERROR || end.outcome == v1::OUTCOME_TIMEOUT) {
    transition.MoveTo(v1::JOB_STATE_FAILED, end.reason);
  } else if (stop == v1::STOP_KIND_PAUSE) {
    transition.MoveTo(v1::JOB_STATE_PAUSED, end.reason);
  } else if (CountsAsFailure(end.outcome)) {
    Retry(&transition, end.reason, now, jitter);
  } else {
    transition.MoveTo(v1::JOB_STATE_QUEUED, end.reason);
  }
  return std::move(transition).Done();
}

}  // namespace ela::coordinator
