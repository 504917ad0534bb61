// Validate: what Submit would refuse, all problems at once.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

/// Resolves a job as it was written and collects every problem: of the spec, of the files it names,
/// of this machine.
struct Checked {
  v1::TrainingJob resolved;
  std::vector<std::string> problems;  // one line each; empty: it can run
};
Checked Check(const Core& core, const v1::TrainingJob& job, const std::string& source_dir);

absl::StatusOr<v1::ValidateResponse> Validate(const Core& core, const v1::ValidateRequest& request);

/// data x sequence of a resolved job.
int64_t RanksOf(const v1::TrainingJob& resolved);

}  // namespace ela::coordinator::ops
