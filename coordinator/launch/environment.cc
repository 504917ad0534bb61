// Which variables reach the ranks.

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "coordinator/launch/local.h"

extern char** environ;

namespace ela::coordinator {
namespace {

// They change how programs are loaded or how MPI runs: never from a job.
constexpr const char* kRefused[] = {"LD_",   "OMPI_",  "PMIX_", "PMI_",  "ORTE_",
                                    "PRTE_", "SLURM_", "OPAL_", "GLIBC_"};
// Of the coordinator's own, these belong to an MPI run or allocation that it was itself started in.
constexpr const char* kNotInherited[] = {"OMPI_", "PMIX_",  "PMI_", "ORTE_",
                                         "PRTE_", "SLURM_", "ELA_"};

template <size_t N>
bool StartsWithAny(std::string_view name, const char* const (&prefixes)[N]) {
  for (const char* prefix : prefixes) {
    if (name.starts_with(prefix)) return true;
  }
  return false;
}

}  // namespace

absl::Status CheckEnvironmentName(const std::string& name) {
  const bool plain = !name.empty() && name.find_first_of("= \n\t") == std::string::npos;
  if (plain && !StartsWithAny(name, kRefused)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("environment variable ", name,
                   ": refused, it could change which code the ranks run; leave it out"));
}

std::vector<std::string> RankEnvironment(const std::map<std::string, std::string>& added, int ranks,
                                         int cores) {
  std::map<std::string, std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    if (!StartsWithAny(parts.first, kNotInherited)) all.insert(parts);
  }
  // Each rank gets its share of the cores, unless the operator has said otherwise.
  const std::string threads = absl::StrCat(std::max(1, cores / std::max(1, ranks)));
  all.try_emplace("OMP_NUM_THREADS", threads);
  all.try_emplace("OPENBLAS_NUM_THREADS", threads);
  for (const auto& [name, value] : added) all[name] = value;
  all["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
  all["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
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
