// Finds attempts that hang, that run past their time limit, or that cannot be heard. All by the
// clock that nobody sets.
#pragma once

#include "coordinator/core.h"

namespace ela::coordinator {

/// Stops the attempt because it does nothing any more; the job goes on from its last checkpoint.
JobTable::Decision DecideHang(const v1::JobRecord& record, int32_t attempt,
                              const std::string& reason, Instant now);
/// Asks for a checkpoint, then ends the job: resources.time_limit.
JobTable::Decision DecideTimeLimit(const v1::JobRecord& record, int32_t attempt,
                                   int64_t deadline_ms, Instant now);
/// Only a note: it never changes the state.
JobTable::Decision DecideContact(const v1::JobRecord& record, bool lost, Instant now);

class Monitor {
 public:
  explicit Monitor(const Core* core) : core_(*core) {}
  void Tick();

 private:
  void Check(const v1::JobRecord& record, const v1::Attempt& attempt, Instant now, int64_t gap_ms);

  const Core& core_;
  int64_t last_tick_mono_ms_ = 0;
};

}  // namespace ela::coordinator
