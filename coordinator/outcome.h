// How an attempt ended, and what follows for its job.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/lifecycle.h"
#include "coordinator/supervisor/records.h"

namespace ela::coordinator {

struct AttemptEnd {
  v1::Outcome outcome = v1::OUTCOME_UNSPECIFIED;
  std::string reason;
  int exit_code = 0;
  int signal = 0;
  int failed_rank = -1;
  bool without_checkpoint = false;  // it was asked to write one before it goes, and did not
};

/// In this order: our own request to stop, the ranks' own records (earliest failure first), what
/// mpirun says, exit code or signal; unknown counts as INFRA.
AttemptEnd Classify(const ExitRecord& exit, v1::StopKind stop, const std::string& stop_reason);

/// Ends the active attempt and moves the job: done, paused, back to the queue, or to a retry within
/// its budget. `jitter` in [0, 1) spreads the retries. The record must have an active attempt.
Change DecideAttemptEnded(const v1::JobRecord& record, AttemptEnd end, Instant now, double jitter);

/// Wait before retry number `failures` (from 1): restart.backoff, doubled each time, at most 5
/// minutes, times 0.75 to 1.25.
int64_t BackoffMs(const v1::JobRecord& record, int failures, double jitter);

}  // namespace ela::coordinator
