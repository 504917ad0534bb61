#include "trainer/loop/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"

namespace ela::trainer {
namespace {

int BoundCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
  return CPU_COUNT(&set);
}

// Cores of the control group ("max 100000" or "200000 100000"); 0: no limit.
int GroupCores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0, limit = 0;
  if (!(file >> quota >> period) || !absl::SimpleAtod(quota, &limit) || period <= 0) return 0;
  return std::max(1, static_cast<int>(limit / period + 0.5));
}

int EnvironmentThreads() {
  for (const char* name : {"ELA_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(name);
    int threads = 0;
    if (text != nullptr && absl::SimpleAtoi(text, &threads) && threads > 0) return threads;
  }
  return 0;
}

int64_t NumberIn(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : -1;
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

std::string LaunchedRank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* value = std::getenv(name); value != nullptr) return value;
  }
  return "";
}

absl::StatusOr<int> LocalRanks(Communicator& world) {
  const std::string host = HostName();
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> hosts, GatherStrings(world, host));
  return static_cast<int>(std::count(hosts.begin(), hosts.end(), host));
}

int ChooseThreads(int local_ranks) {
  const int wanted = EnvironmentThreads();
  if (wanted > 0) return wanted;
  const int machine = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const int bound = BoundCores();
  if (local_ranks > 1 && bound > 0 && bound < online) return bound;  // the launcher has bound us
  int cores = bound > 0 ? bound : machine;
  if (const int group = GroupCores(); group > 0) cores = std::min(cores, group);
  return std::max(1, cores / std::max(1, local_ranks));
}

int64_t AvailableMemory() {
  int64_t available = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    int64_t kib = 0;
    if (!(file >> kib)) break;
    std::getline(file, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const int64_t limit = NumberIn("/sys/fs/cgroup/memory.max");
  const int64_t used = NumberIn("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used));
  return available;
}

int64_t ResidentMemory() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  return file >> size >> resident ? resident * sysconf(_SC_PAGESIZE) : 0;
}

double MeasureProductRate(const LayerContext& layer) {
  constexpr int64_t kSize = 768;
  const kernels::ArenaScope scope(layer.ctx.scratch);
  const kernels::Tensor x = layer.Scratch({kSize, kSize}), w = layer.Scratch({kSize, kSize});
  const kernels::Tensor y = layer.Scratch({kSize, kSize});
  kernels::Fill(layer.ctx, x, 0.5);
  kernels::Fill(layer.ctx, w, 0.25);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const absl::Time begin = absl::Now();
    kernels::LinearForward(layer.ctx, y, x, w);
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    if (seconds > 0) best = std::max(best, 2.0 * kSize * kSize * kSize / seconds);
  }
  return best;
}

}  // namespace ela::trainer
