#include "coordinator/ops/validate.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/job/job_file.h"

namespace ela::coordinator::ops {
namespace {

void NeedFile(const std::string& key, const std::string& path, std::vector<std::string>* problems) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    problems->push_back(
        absl::StrCat(key, ": ", path, " does not exist on the coordinator's machine"));
  }
}

void NeedShards(const std::string& key, const std::string& prefix,
                std::vector<std::string>* problems) {
  for (const char* suffix : {".bin", ".idx"}) {
    std::error_code error;
    if (std::filesystem::exists(prefix + suffix, error)) continue;
    problems->push_back(absl::StrCat(key, ": ", prefix, suffix,
                                     " does not exist; `ela data build` makes token shards"));
    return;
  }
}

void CheckFiles(const v1::JobSpec& spec, std::vector<std::string>* problems) {
  if (spec.tokenizer().has_path())
    NeedFile("spec.tokenizer.path", spec.tokenizer().path(), problems);
  for (int i = 0; i < spec.data().train_size(); ++i) {
    NeedShards(absl::StrCat("spec.data.train[", i, "].path"), spec.data().train(i).path(),
               problems);
  }
  if (spec.data().has_validation()) {
    NeedShards("spec.data.validation", spec.data().validation(), problems);
  }
  if (spec.training().has_init_from()) {
    // PATH or PATH@STEP
    const std::string path = spec.training().init_from();
    NeedFile("spec.training.init_from", path.substr(0, path.rfind('@')), problems);
  }
}

void CheckResources(const Core& core, const v1::TrainingJob& job,
                    std::vector<std::string>* problems) {
  const v1::ResourcesSpec& resources = job.spec().resources();
  if (resources.launcher() != v1::LAUNCHER_KIND_LOCAL &&
      resources.launcher() != v1::LAUNCHER_KIND_UNSPECIFIED) {
    problems->push_back(
        "spec.resources.launcher: this coordinator launches on its own machine only; use local");
  }
  if (resources.nodes() > 1) {
    problems->push_back(absl::StrCat("spec.resources.nodes: ", resources.nodes(),
                                     " nodes were asked for, the local launcher has 1"));
  }
  const int64_t ranks = RanksOf(job);
  if (ranks > core.settings.slots) {
    problems->push_back(absl::StrCat(
        "spec.parallelism: data ", job.spec().parallelism().data(), " x sequence ",
        job.spec().parallelism().sequence(), " needs ", ranks, " slots, this machine has ",
        core.settings.slots, "; lower them, or start the coordinator with --slots ", ranks));
  }
}

}  // namespace

int64_t RanksOf(const v1::TrainingJob& resolved) {
  const v1::ParallelismSpec& mesh = resolved.spec().parallelism();
  return std::max<int64_t>(mesh.data(), 1) * std::max<int64_t>(mesh.sequence(), 1);
}

Checked Check(const Core& core, const v1::TrainingJob& job, const std::string& source_dir) {
  Checked checked;
  if (!source_dir.empty() && source_dir[0] != '/') {
    checked.problems.push_back(absl::StrCat("source_dir: ", source_dir, " is not absolute"));
    return checked;
  }
  checked.resolved = job::Resolve(job, source_dir);
  checked.problems = job::Validate(checked.resolved);
  CheckFiles(checked.resolved.spec(), &checked.problems);
  CheckResources(core, checked.resolved, &checked.problems);
  return checked;
}

absl::StatusOr<v1::ValidateResponse> Validate(const Core& core,
                                              const v1::ValidateRequest& request) {
  Checked checked = Check(core, request.job(), request.source_dir());
  v1::ValidateResponse response;
  *response.mutable_resolved() = std::move(checked.resolved);
  for (std::string& problem : checked.problems) response.add_problems(std::move(problem));
  return response;
}

}  // namespace ela::coordinator::ops
