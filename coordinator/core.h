// What every operation and every loop of the coordinator works with.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "coordinator/job_table.h"
#include "coordinator/launch/launcher.h"

namespace ela::coordinator {

struct Settings {
  std::string state_dir;  // absolute
  std::string address;    // where the ranks reach the coordinator; known once it listens
  std::string metrics_address;
  std::string node_name;
  std::string device = "cpu";
  int64_t slots = 2;
  int64_t heartbeat_interval_ms = 1'000;
  int64_t cancel_grace_ms = 3'000;      // a cancelled job's checkpoint is not awaited longer
  int64_t pause_deadline_ms = 120'000;  // for the checkpoint of a pause or a time limit
  int64_t contact_lost_ms = 10'000;     // without a heartbeat
  int64_t hang_floor_ms = 60'000;       // a hang is max(3 x p99 step, this) without a sign of work
  int64_t slow_phase_ms = 600'000;  // the same while it starts, evaluates or writes a checkpoint
};

/// `jobs`, `launcher` outlive it. Thread-safe.
struct Core {
  Settings settings;
  JobTable* jobs = nullptr;
  Launcher* launcher = nullptr;
  /// Random bits: ids, tokens, jitter. Seeded in tests.
  std::function<uint64_t()> random;
};

/// n hex digits from `random`.
std::string RandomHex(const std::function<uint64_t()>& random, int digits);
/// In [0, 1).
double RandomUnit(const std::function<uint64_t()>& random);
/// From the system, safe for tokens.
uint64_t SystemRandom();

}  // namespace ela::coordinator
