#include "coordinator/scheduler/gang_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ela::coordinator {
namespace {

int64_t Priority(const v1::JobRecord& record) {
  return record.job().spec().spec().resources().priority();
}

}  // namespace

Schedule PlanSchedule(const std::vector<RecordPtr>& unfinished, int64_t slots) {
  Schedule schedule;
  std::vector<RecordPtr> queued;
  std::string holder;  // one of those that have the slots, to name it
  for (const RecordPtr& record : unfinished) {
    if (HoldsSlots(record->job().state())) {
      schedule.used_slots += record->ranks();
      holder = record->job().id();
    }
    if (record->job().state() == v1::JOB_STATE_QUEUED) queued.push_back(record);
  }
  std::stable_sort(queued.begin(), queued.end(), [](const RecordPtr& a, const RecordPtr& b) {
    if (Priority(*a) != Priority(*b)) return Priority(*a) > Priority(*b);
    return a->queue_number() < b->queue_number();
  });
  int64_t left = slots - schedule.used_slots;
  std::string ahead;  // the last job before this one that waits, too
  for (const RecordPtr& record : queued) {
    const std::string& id = record->job().id();
    if (ahead.empty() && record->ranks() <= left) {
      left -= record->ranks();
      schedule.start.push_back(id);
      holder = id;
      continue;
    }
    std::string why = absl::StrCat("waits for ", record->ranks(), " slots, ",
                                   std::max<int64_t>(left, 0), " of ", slots, " are free");
    if (!ahead.empty()) {
      absl::StrAppend(&why, "; behind ", ahead);
    } else if (!holder.empty()) {
      absl::StrAppend(&why, "; behind ", holder, ", which runs");
    }
    schedule.waiting[id] = why;
    ahead = id;
  }
  return schedule;
}

}  // namespace ela::coordinator
