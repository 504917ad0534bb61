#include "coordinator/clock.h"

#include "coordinator/supervisor/process.h"

namespace ela::coordinator {

Instant SystemClock::Now() const { return {UnixMs(), MonotonicMs()}; }

}  // namespace ela::coordinator
