// "PATH[@STEP]" as users write it.
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/export/exported_folder.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/layout.h"
#include "proto/job/job_file.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

bool IsCheckpointFolder(const std::string& path) {
  return kv::Exists(CatalogFolder(path)) || kv::Exists(StepsFolder(path));
}

}  // namespace

absl::StatusOr<std::string> FindCheckpointFolder(const std::string& path) {
  if (IsCheckpointFolder(path)) return path;
  if (IsCheckpointFolder(path + "/checkpoints")) return path + "/checkpoints";
  const std::string job_file = path + "/job.resolved.yaml";
  if (kv::Exists(job_file)) {  // the job may keep its checkpoints elsewhere
    ELA_ASSIGN_OR_RETURN(const v1::TrainingJob job, job::LoadJobFile(job_file));
    const std::string& elsewhere = job.spec().checkpoint().path();
    if (!elsewhere.empty() && IsCheckpointFolder(elsewhere)) return elsewhere;
    return absl::NotFoundError(absl::StrCat("the run in ", path, " has no checkpoint yet"));
  }
  if (!kv::Exists(path)) return absl::NotFoundError(absl::StrCat("there is no ", path));
  return absl::NotFoundError(
      absl::StrCat(path, " is no checkpoint, no run folder and no exported model"));
}

absl::StatusOr<PathAtStep> SplitPathAtStep(const std::string& path_at_step) {
  PathAtStep split{path_at_step, std::nullopt};
  const size_t at = path_at_step.rfind('@');
  if (at == std::string::npos || kv::Exists(path_at_step)) return split;
  int64_t step = 0;
  if (!absl::SimpleAtoi(path_at_step.substr(at + 1), &step) || step < 0) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path_at_step.substr(at + 1), "\" in ",
                                                   path_at_step, " is no step number"));
  }
  split.path = path_at_step.substr(0, at);
  split.step = step;
  return split;
}

absl::StatusOr<std::unique_ptr<StepReader>> OpenCheckpoint(const std::string& path_at_step) {
  ELA_ASSIGN_OR_RETURN(const PathAtStep split, SplitPathAtStep(path_at_step));
  if (IsExportedFolder(split.path)) {
    if (!split.step.has_value()) return OpenExportedFolder(split.path);
    return absl::InvalidArgumentError(absl::StrCat(
        split.path, " is an exported model, which has no steps: leave out @", *split.step));
  }
  ELA_ASSIGN_OR_RETURN(const std::string path, FindCheckpointFolder(split.path));
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<Catalog> catalog, Catalog::OpenForReading(path));
  if (split.step.has_value()) {
    ELA_ASSIGN_OR_RETURN(const v1::StepManifest manifest, catalog->Get(*split.step));
    return StepReader::Open(path, manifest);
  }
  ELA_ASSIGN_OR_RETURN(const std::optional<v1::StepManifest> newest, catalog->Latest());
  if (!newest.has_value()) {
    return absl::NotFoundError(absl::StrCat("no step is committed in ", path, " yet"));
  }
  return StepReader::Open(path, *newest);
}

}  // namespace ela::checkpoints
