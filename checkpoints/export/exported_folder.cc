#include "checkpoints/export/exported_folder.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/export/folder_format.h"
#include "checkpoints/export/safetensors.h"
#include "checkpoints/kv/files.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

class ExportedReader : public StepReader {
 public:
  ExportedReader(std::unique_ptr<SafetensorsFile> file, v1::StepManifest manifest)
      : file_(std::move(file)), manifest_(std::move(manifest)) {}

  const v1::StepManifest& manifest() const override { return manifest_; }

  absl::Status Read(const std::string& tensor, int64_t begin, int64_t end, void* out) override {
    if (!absl::StartsWith(tensor, kModelPrefix)) {
      return absl::NotFoundError(absl::StrCat(file_->path(), " has no tensor ", tensor,
                                              ": an exported folder holds a model alone"));
    }
    return file_->Read(tensor.substr(sizeof(kModelPrefix) - 1), begin, end,
                       static_cast<float*>(out));
  }

  absl::Status Verify(const std::function<void(const absl::Status&)>& damage) override {
    const absl::Status whole = file_->CheckHash();
    if (!absl::IsDataLoss(whole)) return whole;
    damage(whole);
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
  v1::StepManifest manifest_;
};

std::string MetadataOr(const SafetensorsFile& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? "" : it->second;
}

int64_t NumberOr0(const std::string& text) {
  int64_t number = 0;
  return absl::SimpleAtoi(text, &number) && number >= 0 ? number : 0;
}

absl::Status AddTensor(const SafetensorsFile& file, const job::ParameterInfo& parameter,
                       v1::StepManifest* manifest) {
  const SafetensorsEntry* entry = file.Find(parameter.name);
  if (entry == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), " has no tensor ", parameter.name,
                                                   ", which its config.json asks for"));
  }
  if (entry->shape != parameter.shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", parameter.name, " of ", file.path(), " is [", absl::StrJoin(entry->shape, ", "),
        "], its config.json asks for [", absl::StrJoin(parameter.shape, ", "), "]"));
  }
  v1::TensorRecord* record = manifest->add_tensors();
  record->set_name(absl::StrCat(kModelPrefix, parameter.name));
  record->set_dtype("f32");
  record->mutable_shape()->Assign(parameter.shape.begin(), parameter.shape.end());
  manifest->set_bytes(manifest->bytes() + 4 * parameter.numel());
  return absl::OkStatus();
}

v1::TrainingJob JobOfFolder(const std::string& path, const SafetensorsFile& file,
                            const v1::ModelSpec& model) {
  v1::TrainingJob job;
  job.set_api_version("ela/v1");
  job.set_kind("TrainingJob");
  job.mutable_metadata()->set_name("exported");
  *job.mutable_spec()->mutable_model() = model;
  if (MetadataOr(file, kObjectiveKey) == kMaskedToken) {
    job.mutable_spec()->mutable_training()->set_objective(v1::OBJECTIVE_MASKED_TOKEN);
  }
  for (const char* name : kTokenizerNames) {
    const std::string tokenizer = absl::StrCat(path, "/", name);
    if (kv::Exists(tokenizer)) job.mutable_spec()->mutable_tokenizer()->set_path(tokenizer);
  }
  return job;
}

}  // namespace

bool IsExportedFolder(const std::string& path) {
  return kv::Exists(absl::StrCat(path, "/", kWeightsName));
}

bool IsLobeParameter(const std::string& name) { return absl::StrContains(name, ".lobe."); }

absl::StatusOr<v1::TrainingJob> JobOf(const v1::StepManifest& manifest) {
  auto job = job::ParseJob(manifest.resolved_job(), "the checkpoint's job");
  if (job.ok()) return job;
  return absl::DataLossError(absl::StrCat("step ", manifest.step(), " does not say what it is of: ",
                                          std::string(job.status().message())));
}

absl::StatusOr<std::unique_ptr<StepReader>> OpenExportedFolder(const std::string& path) {
  const std::string config = absl::StrCat(path, "/", kConfigName);
  ELA_ASSIGN_OR_RETURN(const std::string text, kv::ReadFile(config, size_t{16} << 20));
  ELA_ASSIGN_OR_RETURN(const v1::ModelSpec model, job::ModelFromJson(text, config));
  ELA_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                       SafetensorsFile::Open(absl::StrCat(path, "/", kWeightsName)));
  const bool lobe_only = MetadataOr(*file, kOnlyKey) == kMemoryLobe;
  v1::StepManifest manifest;
  for (const job::ParameterInfo& parameter : job::Parameters(model)) {
    if (lobe_only && !IsLobeParameter(parameter.name)) continue;
    ELA_RETURN_IF_ERROR(AddTensor(*file, parameter, &manifest));
  }
  manifest.set_step(NumberOr0(MetadataOr(*file, kStepKey)));
  manifest.set_job(MetadataOr(*file, kJobKey));
  manifest.set_code_version(MetadataOr(*file, kCodeVersionKey));
  manifest.mutable_state()->set_step(manifest.step());
  manifest.mutable_state()->set_tokens(NumberOr0(MetadataOr(*file, kTokensKey)));
  manifest.set_resolved_job(job::ToYaml(JobOfFolder(path, *file, model)));
  return std::make_unique<ExportedReader>(std::move(file), std::move(manifest));
}

}  // namespace ela::checkpoints
