// Time, injected: nothing in the coordinator's logic asks the system for it.
#pragma once

#include <cstdint>

namespace ela::coordinator {

/// One moment on both clocks. Deadlines go by `mono_ms`, which nobody can set; `unix_ms` is for
/// people and for the store.
struct Instant {
  int64_t unix_ms = 0;
  int64_t mono_ms = 0;
};

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Instant Now() const = 0;
};

class SystemClock : public Clock {
 public:
  Instant Now() const override;
};

}  // namespace ela::coordinator
