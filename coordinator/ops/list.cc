#include "coordinator/ops/list.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ela::coordinator::ops {
namespace {

constexpr int kUsualPage = 100;
constexpr int kLargestPage = 1000;

bool Wanted(const v1::ListRequest& request, v1::JobState state) {
  return request.states().empty() || std::find(request.states().begin(), request.states().end(),
                                               state) != request.states().end();
}

}  // namespace

absl::StatusOr<v1::ListResponse> List(const Core& core, const v1::ListRequest& request) {
  // The token is the queue number of the last job shown, so new jobs do not shift the pages.
  int64_t before = INT64_MAX;
  if (!request.page_token().empty() && !absl::SimpleAtoi(request.page_token(), &before)) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_token ", request.page_token(), " is not one that List returned"));
  }
  const int page =
      request.page_size() <= 0 ? kUsualPage : std::min(request.page_size(), kLargestPage);
  v1::ListResponse response;
  std::vector<RecordPtr> records = core.jobs->All();
  int64_t last = 0;
  for (auto it = records.rbegin(); it != records.rend(); ++it) {
    if ((*it)->queue_number() >= before || !Wanted(request, (*it)->job().state())) continue;
    if (response.jobs_size() == page) {
      response.set_next_page_token(absl::StrCat(last));
      break;
    }
    v1::Job* job = response.add_jobs();
    *job = core.jobs->View(**it);
    job->mutable_spec()->mutable_spec()->clear_data();
    job->mutable_spec()->mutable_spec()->clear_model();
    last = (*it)->queue_number();
  }
  return response;
}

}  // namespace ela::coordinator::ops
