// Starts queued jobs when their slots are free, and queues again those whose back-off is over.
#pragma once

#include "coordinator/core.h"

namespace ela::coordinator {

/// QUEUED to STARTING: a new attempt, and the launch as a pending side effect.
JobTable::Decision DecideStart(const v1::JobRecord& record, const std::string& token, Instant now);

class Scheduler {
 public:
  explicit Scheduler(const Core* core) : core_(*core) {}
  void Tick();

 private:
  void EndBackoffs();

  const Core& core_;
};

}  // namespace ela::coordinator
