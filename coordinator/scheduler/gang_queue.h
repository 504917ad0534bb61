// Which queued jobs start now: all ranks of a job or none, higher priority first, then in order of
// submission.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coordinator/job_table.h"

namespace ela::coordinator {

struct Schedule {
  std::vector<std::string> start;              // job ids, in order
  std::map<std::string, std::string> waiting;  // job id -> why it waits, and behind whom
  int64_t used_slots = 0;                      // before `start`
};

/// Pure. Strict order: nothing overtakes the first job that does not fit, so a large job cannot
/// starve.
Schedule PlanSchedule(const std::vector<RecordPtr>& unfinished, int64_t slots);

}  // namespace ela::coordinator
