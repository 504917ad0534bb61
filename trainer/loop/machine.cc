#include "trainer/loop/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"
#include "trainer/loop/phase_clock.h"

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

// In [-1, 1): a product of equal numbers runs faster than one of data.
void FillWithNoise(const kernels::Context& ctx, const kernels::Tensor& x) {
  std::vector<float> noise(static_cast<size_t>(x.numel()));
  uint32_t state = 1;
  for (float& value : noise) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) * 0x1p-23f - 1;
  }
  const size_t bytes = noise.size() * sizeof(float);
  const kernels::BackendMemory memory(bytes, ctx.backend);
  const kernels::Tensor floats(memory.data(), kernels::DType::kF32, {x.numel()});
  kernels::CopyIn(ctx, floats, noise.data());
  kernels::Copy(ctx, x.View({x.numel()}), floats);
  if (ctx.device != nullptr) ctx.device->Synchronize();
}

int64_t NumberIn(const std::string& path) {
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

bool SpeaksForAll() {
  const std::string rank = LaunchedRank();
  return rank.empty() || rank == "0";
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

int64_t AvailableMemory(const std::string& root) {
  const std::string group = root + "/sys/fs/cgroup/memory.";
  int64_t available = 0;
  std::ifstream file(root + "/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    int64_t kib = 0;
    if (!(file >> kib)) break;
    std::getline(file, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const int64_t limit = NumberIn(group + "max"), used = NumberIn(group + "current");
  if (limit <= 0 || used < 0) return available;
  int64_t cached = 0, bytes = 0;
  std::ifstream statistics(group + "stat");
  for (std::string key; statistics >> key >> bytes;) {
    if (key == "active_file" || key == "inactive_file") cached += bytes;
  }
  available = std::min(available, std::max<int64_t>(0, limit - used + std::min(cached, used)));
  return available;
}

int64_t ResidentMemory() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  return file >> size >> resident ? resident * sysconf(_SC_PAGESIZE) : 0;
}

double MeasureProductRate(const LayerContext& layer, int64_t size) {
  const kernels::Context& ctx = layer.ctx;
  if (size == 0) size = ctx.device == nullptr ? 768 : 4096;
  const size_t bytes = static_cast<size_t>(size * size) * kernels::SizeOf(layer.element);
  const kernels::BackendMemory memory(3 * bytes, ctx.backend);
  const auto matrix = [&](size_t i) {
    return kernels::Tensor(memory.data() + i * bytes, layer.element, {size, size});
  };
  for (size_t i : {0, 1}) FillWithNoise(ctx, matrix(i));
  // Several at a time on a device: a product alone is hardly longer than its launch.
  const int products = ctx.device == nullptr ? 1 : 10;
  double best = 0;
  PhaseClock clock(ctx.device, [&](const std::string&, double seconds) {
    const double flops = 2.0 * static_cast<double>(size) * static_cast<double>(size * size);
    if (seconds > 0) best = std::max(best, products * flops / seconds);
  });
  for (int i = 0; i < 5; ++i) {
    clock.Begin("products");
    for (int j = 0; j < products; ++j) {
      kernels::LinearForward(ctx, matrix(2), matrix(0), matrix(1));
    }
    clock.Finish();
  }
  return best;
}

}  // namespace ela::trainer
