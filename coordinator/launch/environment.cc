// Which variables reach the ranks.

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "coordinator/launch/local.h"

extern char** environ;

namespace ela::coordinator {
namespace {

// Of the coordinator's own, these belong to an MPI run or allocation that it was itself started in.
constexpr const char* kNotInherited[] = {"OMPI_", "PMIX_",  "PMI_", "ORTE_",
                                         "PRTE_", "SLURM_", "ELA_"};

bool IsInherited(std::string_view name) {
  for (const char* prefix : kNotInherited) {
    if (name.starts_with(prefix)) return false;
  }
  return true;
}

}  // namespace

std::vector<std::string> RankEnvironment(int ranks, int cores) {
  std::map<std::string, std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    if (IsInherited(parts.first)) all.insert(parts);
  }
  // Each rank gets its share of the cores, unless the operator has said otherwise.
  const std::string threads = absl::StrCat(std::max(1, cores / std::max(1, ranks)));
  all.try_emplace("OMP_NUM_THREADS", threads);
  all.try_emplace("OPENBLAS_NUM_THREADS", threads);
  all.insert_or_assign("OMPI_ALLOW_RUN_AS_ROOT", "1");
  all.insert_or_assign("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
  std::vector<std::string> lines;
  for (const auto& [name, value] : all) lines.push_back(absl::StrCat(name, "=", value));
  return lines;
}

absl::StatusOr<std::string> FindMpirun() {
  const char* path = std::getenv("PATH");
  // By its full name first: MPICH may have put another mpirun beside it.
  for (const char* name : {"mpirun.openmpi", "mpirun"}) {
    for (const absl::string_view folder : absl::StrSplit(path == nullptr ? "" : path, ':')) {
      const std::string candidate = absl::StrCat(folder, "/", name);
      if (access(candidate.c_str(), X_OK) == 0) return candidate;
    }
  }
  return absl::NotFoundError(
      "mpirun.openmpi is not in PATH; install Open MPI (apt install openmpi-bin)");
}

}  // namespace ela::coordinator
