#include "coordinator/ops/events.h"

#include <utility>

#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

constexpr size_t kMostEvents = 10'000;  // about 1 MiB; the caller goes on from the last one

}  // namespace

absl::StatusOr<v1::EventsResponse> Events(const Core& core, const v1::EventsRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, core.jobs->Resolve(request.job()));
  ELA_ASSIGN_OR_RETURN(
      std::vector<v1::Event> events,
      core.jobs->Events(record->job().id(), request.after_sequence(), kMostEvents));
  v1::EventsResponse response;
  for (v1::Event& event : events) *response.add_events() = std::move(event);
  return response;
}

}  // namespace ela::coordinator::ops
