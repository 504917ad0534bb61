#include "proto/job/support.h"

#include <string_view>

namespace ela::job {
namespace {

struct Row {
  std::string_view path;
  bool (*asks)(const v1::JobSpec& spec);
  std::string_view problem;
};

constexpr Row kTable[] = {
    {"spec.resources.launcher",
     [](const v1::JobSpec& spec) { return spec.resources().launcher() == v1::LAUNCHER_KIND_SLURM; },
     "slurm is not supported by this build yet; use local"},
    {"spec.resources.launcher",
     [](const v1::JobSpec& spec) {
       return spec.resources().launcher() == v1::LAUNCHER_KIND_KUBERNETES;
     },
     "kubernetes is not supported by this build yet; use local"},
    {"spec.resources.nodes",
     [](const v1::JobSpec& spec) {
       return spec.resources().launcher() == v1::LAUNCHER_KIND_LOCAL &&
              spec.resources().nodes() > 1;
     },
     "the local launcher has one node; use 1"},
    {"spec.resources.queue",
     [](const v1::JobSpec& spec) { return spec.resources().queue() != "default"; },
     "there is one queue, default, which goes by priority; leave it out"},
};

}  // namespace

std::vector<Unsupported> UnsupportedKeys(const v1::JobSpec& spec) {
  std::vector<Unsupported> found;
  for (const Row& row : kTable) {
    if (row.asks(spec)) found.push_back({std::string(row.path), std::string(row.problem)});
  }
  return found;
}

}  // namespace ela::job
