// Carries out the side effects that were decided, in order within a job, each as often as it takes:
// every one can be repeated without doing it twice.
#pragma once

#include "coordinator/core.h"

namespace ela::coordinator {

JobTable::Decision DecideLaunched(const v1::JobRecord& record, int32_t attempt,
                                  const std::string& handle, Instant now);

class Outbox {
 public:
  explicit Outbox(const Core* core) : core_(*core) {}
  void Tick();

 private:
  /// False: could not be done now; the ones after it wait.
  bool CarryOut(const v1::JobRecord& record, const v1::Effect& effect);
  bool Launch(const v1::JobRecord& record, int32_t attempt);
  bool EndUnlaunched(const std::string& id, int32_t attempt, v1::Outcome outcome,
                     const std::string& reason);

  const Core& core_;
};

}  // namespace ela::coordinator
