#include "coordinator/ops/goodbye.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ops/attempt_key.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {

JobTable::Decision DecideGoodbye(const v1::JobRecord& record, const v1::GoodbyeRequest& request,
                                 Instant now) {
  if (ActiveAttempt(record)->state() >= v1::ATTEMPT_STATE_STOPPING) return std::optional<Change>();
  Transition transition(record, now, "trainer");
  MutableActiveAttempt(&transition.record())->set_state(v1::ATTEMPT_STATE_STOPPING);
  // The reason is in their exit records, and comes with the end of the attempt.
  transition.Note("attempt", absl::StrCat("the ranks leave: ", OutcomeName(request.outcome())));
  return std::optional<Change>(std::move(transition).Done());
}

absl::StatusOr<v1::GoodbyeResponse> Goodbye(const Core& core, const v1::GoodbyeRequest& request,
                                            const std::string& token) {
  ELA_RETURN_IF_ERROR(
      core.jobs
          ->Update(request.key().job(),
                   [&](const v1::JobRecord& record, Instant now) -> JobTable::Decision {
                     ELA_RETURN_IF_ERROR(CheckAttempt(record, request.key(), token));
                     return DecideGoodbye(record, request, now);
                   })
          .status());
  return v1::GoodbyeResponse();
}

}  // namespace ela::coordinator::ops
