// Who may speak for an attempt.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "ela/v1/trainer.pb.h"

namespace ela::coordinator::ops {

/// The record of the attempt's job when `key` names its newest attempt, that attempt has not ended
/// and `token` is its own. FailedPrecondition when the attempt is over or a newer one exists: its
/// ranks must go without writing anything. Unauthenticated for a wrong token, NotFound for an
/// unknown job.
absl::Status CheckAttempt(const v1::JobRecord& record, const v1::AttemptKey& key,
                          const std::string& token);
absl::StatusOr<RecordPtr> FindAttempt(const Core& core, const v1::AttemptKey& key,
                                      const std::string& token);

}  // namespace ela::coordinator::ops
