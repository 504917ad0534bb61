// Submit: checks a job and queues it, once however often it is asked.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator::ops {

struct NewJob {
  std::string id;
  std::string run_dir;
  std::string client_key;
  v1::TrainingJob resolved;
};
Change DecideSubmit(const NewJob& job, int64_t queue_number, Instant now);

/// Of what was submitted: the same twice gives the same text.
std::string Fingerprint(const v1::SubmitRequest& request);

absl::StatusOr<v1::SubmitResponse> Submit(const Core& core, const v1::SubmitRequest& request);

}  // namespace ela::coordinator::ops
