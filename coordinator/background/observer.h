// Looks at what the launcher sees of the running attempts, also those of a coordinator before this
// one, and ends those that have ended. An attempt that cannot be seen stays as it is.
#pragma once

#include "coordinator/core.h"

namespace ela::coordinator {

class Observer {
 public:
  explicit Observer(const Core* core) : core_(*core) {}
  void Tick();
  /// Once, at start: stops attempts that no job knows, and reads the curves of running jobs back.
  void Adopt();

 private:
  void Look(const v1::JobRecord& record, const v1::Attempt& attempt);

  const Core& core_;
};

/// Reads the job's curve and progress from its metrics.jsonl unless that was done before.
void LoadHistory(const Core& core, const v1::Job& job);

}  // namespace ela::coordinator
