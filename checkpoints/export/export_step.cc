// ExportStep: the weights of a step for the world outside.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/export/exported_folder.h"
#include "checkpoints/export/folder_format.h"
#include "checkpoints/export/model_card.h"
#include "checkpoints/export/safetensors_set.h"
#include "checkpoints/kv/files.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

constexpr int64_t kElementsAtOnce = 4 << 20;

/// Round to nearest even; a NaN stays one.
uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

absl::Status AppendTensor(StepReader* reader, const job::ParameterInfo& parameter, bool bf16,
                          SafetensorsSetWriter* writer) {
  std::vector<float> values;
  std::vector<uint16_t> rounded;
  const int64_t numel = parameter.numel();
  for (int64_t at = 0; at < numel; at += kElementsAtOnce) {
    const int64_t end = std::min(at + kElementsAtOnce, numel);
    values.resize(static_cast<size_t>(end - at));
    ELA_RETURN_IF_ERROR(
        reader->Read(absl::StrCat(kModelPrefix, parameter.name), at, end, values.data()));
    if (!bf16) {
      ELA_RETURN_IF_ERROR(writer->Append(values.data(), 4 * (end - at)));
      continue;
    }
    rounded.resize(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(), ToBf16);
    ELA_RETURN_IF_ERROR(writer->Append(rounded.data(), 2 * (end - at)));
  }
  return absl::OkStatus();
}

bool HasDocumentMask(const v1::DataSpec& data) {
  return !data.has_document_mask() || data.document_mask();
}

std::map<std::string, std::string> MetadataOf(const v1::StepManifest& manifest,
                                              const v1::TrainingJob& job, bool lobe_only) {
  std::map<std::string, std::string> metadata = {
      {"format", "pt"},  // what other readers of safetensors look for
      {kStepKey, absl::StrCat(manifest.step())},
      {kTokensKey, absl::StrCat(manifest.state().tokens())},
      {kJobKey, manifest.job()},
      {kCodeVersionKey, manifest.code_version()},
      {kObjectiveKey, kNextToken},
      {kDocumentMaskKey, HasDocumentMask(job.spec().data()) ? "true" : "false"}};
  if (job.spec().training().objective() == v1::OBJECTIVE_MASKED_TOKEN) {
    metadata[kObjectiveKey] = kMaskedToken;
  }
  if (lobe_only) metadata[kOnlyKey] = kMemoryLobe;
  return metadata;
}

/// The name of the copy; empty: none.
absl::StatusOr<std::string> CopyTokenizer(const v1::TrainingJob& job, const ExportOptions& options,
                                          const std::string& folder) {
  const std::string& from =
      options.tokenizer_path.empty() ? job.spec().tokenizer().path() : options.tokenizer_path;
  if (!options.tokenizer || options.lobe_only || from.empty()) return std::string();
  const auto content = kv::ReadFile(from);
  if (absl::IsNotFound(content.status())) {
    return absl::NotFoundError(absl::StrCat("the tokenizer ", from,
                                            " is not there: name another copy by --tokenizer, or "
                                            "leave it out by --without-tokenizer"));
  }
  if (!content.ok()) return content.status();
  const std::string name = kTokenizerNames[absl::EndsWith(from, ".json") ? 1 : 0];
  ELA_RETURN_IF_ERROR(kv::WriteFileDurably(absl::StrCat(folder, "/", name), *content));
  return name;
}

absl::StatusOr<std::vector<job::ParameterInfo>> Wanted(const v1::ModelSpec& model, bool lobe_only) {
  std::vector<job::ParameterInfo> parameters = job::Parameters(model);
  if (!lobe_only) return parameters;
  std::erase_if(parameters, [](const auto& p) { return !IsLobeParameter(p.name); });
  if (parameters.empty()) return absl::NotFoundError("the model has no Memory Lobe");
  return parameters;
}

absl::StatusOr<ExportResult> WriteFolder(StepReader* reader, const ExportOptions& options,
                                         const std::string& folder) {
  const v1::StepManifest& manifest = reader->manifest();
  ELA_ASSIGN_OR_RETURN(const v1::TrainingJob job, JobOf(manifest));
  ELA_ASSIGN_OR_RETURN(const std::vector<job::ParameterInfo> parameters,
                       Wanted(job.spec().model(), options.lobe_only));
  ExportResult result;
  std::vector<SafetensorsEntry> entries;
  for (const job::ParameterInfo& parameter : parameters) {
    entries.push_back({parameter.name, options.bf16 ? "BF16" : "F32", parameter.shape, 0, 0});
    ++result.tensors;
    result.parameters += parameter.numel();
  }
  result.bytes = result.parameters * (options.bf16 ? 2 : 4);
  const auto write = [&](const char* name, std::string_view text) {
    return kv::WriteFileDurably(absl::StrCat(folder, "/", name), text);
  };
  ELA_ASSIGN_OR_RETURN(result.tokenizer, CopyTokenizer(job, options, folder));
  ELA_RETURN_IF_ERROR(write(kConfigName, job::ModelToJson(job.spec().model())));
  ELA_RETURN_IF_ERROR(write(kCardName, ModelCard(manifest, job, options, result)));
  if (!options.lobe_only) ELA_RETURN_IF_ERROR(write(kModuleName, ModelingModule()));
  SafetensorsSetWriter writer(folder, std::move(entries),
                              MetadataOf(manifest, job, options.lobe_only), options.part_bytes);
  for (const job::ParameterInfo& parameter : parameters) {
    ELA_RETURN_IF_ERROR(AppendTensor(reader, parameter, options.bf16, &writer));
  }
  ELA_RETURN_IF_ERROR(writer.Finish());
  return result;
}

}  // namespace

absl::StatusOr<ExportResult> ExportStep(StepReader* reader, const ExportOptions& options) {
  // Absolute and without a slash at its end, so that its sibling is one.
  std::filesystem::path path = std::filesystem::absolute(options.to).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  const std::string to = path.string();
  if (kv::Exists(to)) {
    ELA_ASSIGN_OR_RETURN(const std::vector<std::string> content, kv::ListDirectory(to));
    if (!content.empty()) {
      return absl::AlreadyExistsError(
          absl::StrCat(to, " is not empty: name a new folder, or remove this one first"));
    }
  }
  const std::string temporary = absl::StrCat(to, ".tmp.", ::getpid());
  ELA_RETURN_IF_ERROR(kv::RemoveTree(temporary));
  const absl::Cleanup undo = [&] { kv::RemoveTree(temporary).IgnoreError(); };
  ELA_RETURN_IF_ERROR(kv::MakeDirectories(temporary));
  ELA_ASSIGN_OR_RETURN(ExportResult result, WriteFolder(reader, options, temporary));
  ELA_RETURN_IF_ERROR(kv::RenameDurably(temporary, to));
  if (!result.tokenizer.empty()) result.tokenizer = absl::StrCat(to, "/", result.tokenizer);
  return result;
}

}  // namespace ela::checkpoints
