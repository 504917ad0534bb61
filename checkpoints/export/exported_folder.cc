#include "checkpoints/export/exported_folder.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "checkpoints/export/folder_format.h"
#include "checkpoints/export/safetensors_set.h"
#include "checkpoints/kv/files.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

class ExportedReader : public StepReader {
 public:
  ExportedReader(std::unique_ptr<SafetensorsSet> tensors, v1::StepManifest manifest, bool lobe_only)
      : tensors_(std::move(tensors)), manifest_(std::move(manifest)), lobe_only_(lobe_only) {}

  const v1::StepManifest& manifest() const override { return manifest_; }

  absl::Status Read(const std::string& tensor, int64_t begin, int64_t end, void* out) override {
    const std::string name(absl::StripPrefix(tensor, kModelPrefix));
    if (tensors_->Find(name) != nullptr && name != tensor) {
      return tensors_->Read(name, begin, end, static_cast<float*>(out));
    }
    return absl::NotFoundError(absl::StrCat(
        tensors_->path(), " has no tensor ", tensor,
        lobe_only_ ? ": it holds the Memory Lobes alone; put them into a model by ela checkpoint "
                     "import MODEL --lobe"
                   : ": an exported folder holds a model alone"));
  }

  absl::Status Verify(const std::function<void(const absl::Status&)>& damage) override {
    return tensors_->Verify(damage);
  }

 private:
  std::unique_ptr<SafetensorsSet> tensors_;
  v1::StepManifest manifest_;
  const bool lobe_only_;
};

std::string MetadataOr(const SafetensorsSet& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? "" : it->second;
}

int64_t NumberOr0(const std::string& text) {
  int64_t number = 0;
  return absl::SimpleAtoi(text, &number) && number >= 0 ? number : 0;
}

absl::Status AddTensor(const SafetensorsSet& file, const job::ParameterInfo& parameter,
                       v1::StepManifest* manifest) {
  const SafetensorsEntry* entry = file.Find(parameter.name);
  if (entry == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), " has no tensor ", parameter.name,
                                                   ", which its config.json asks for"));
  }
  ELA_RETURN_IF_ERROR(CheckFloating(*entry, file.path()));
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

v1::TrainingJob JobOfFolder(const std::string& path, const SafetensorsSet& file,
                            const v1::ModelSpec& model) {
  v1::TrainingJob job;
  job.set_api_version("ela/v1");
  job.set_kind("TrainingJob");
  job.mutable_metadata()->set_name("exported");
  *job.mutable_spec()->mutable_model() = model;
  if (MetadataOr(file, kObjectiveKey) == kMaskedToken) {
    job.mutable_spec()->mutable_training()->set_objective(v1::OBJECTIVE_MASKED_TOKEN);
  }
  job.mutable_spec()->mutable_data()->set_document_mask(MetadataOr(file, kDocumentMaskKey) !=
                                                        "false");
  for (const char* name : kTokenizerNames) {
    const std::string tokenizer = absl::StrCat(path, "/", name);
    if (kv::Exists(tokenizer)) job.mutable_spec()->mutable_tokenizer()->set_path(tokenizer);
  }
  return job;
}

}  // namespace

bool IsExportedFolder(const std::string& path) { return SafetensorsSet::IsIn(path); }

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
  ELA_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsSet> file, SafetensorsSet::Open(path));
  const bool lobe_only = MetadataOr(*file, kOnlyKey) == kMemoryLobe;
  v1::StepManifest manifest;
  std::set<std::string> known;
  for (const job::ParameterInfo& parameter : job::Parameters(model)) {
    if (lobe_only && !IsLobeParameter(parameter.name)) continue;
    ELA_RETURN_IF_ERROR(AddTensor(*file, parameter, &manifest));
    known.insert(parameter.name);
  }
  for (const std::string& name : file->names()) {
    if (known.count(name) > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(file->path(), " has a tensor ", name,
                                                   ", which its config.json does not ask for"));
  }
  manifest.set_step(NumberOr0(MetadataOr(*file, kStepKey)));
  manifest.set_job(MetadataOr(*file, kJobKey));
  manifest.set_code_version(MetadataOr(*file, kCodeVersionKey));
  manifest.mutable_state()->set_step(manifest.step());
  manifest.mutable_state()->set_tokens(NumberOr0(MetadataOr(*file, kTokensKey)));
  manifest.set_resolved_job(job::ToYaml(JobOfFolder(path, *file, model)));
  return std::make_unique<ExportedReader>(std::move(file), std::move(manifest), lobe_only);
}

}  // namespace ela::checkpoints
