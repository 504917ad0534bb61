// ExportStep: the weights of a step for the world outside.
#include <algorithm>
#include <bit>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/export/exported_folder.h"
#include "checkpoints/export/folder_format.h"
#include "checkpoints/export/safetensors.h"
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
                          SafetensorsWriter* writer) {
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

std::map<std::string, std::string> MetadataOf(const v1::StepManifest& manifest,
                                              const v1::TrainingJob& job, bool lobe_only) {
  std::map<std::string, std::string> metadata = {
      {"format", "pt"},  // what other readers of safetensors look for
      {kStepKey, absl::StrCat(manifest.step())},
      {kTokensKey, absl::StrCat(manifest.state().tokens())},
      {kJobKey, manifest.job()},
      {kCodeVersionKey, manifest.code_version()},
      {kObjectiveKey, "next_token"}};
  if (job.spec().training().objective() == v1::OBJECTIVE_MASKED_TOKEN) {
    metadata[kObjectiveKey] = kMaskedToken;
  }
  if (lobe_only) metadata[kOnlyKey] = kMemoryLobe;
  return metadata;
}

absl::StatusOr<std::string> CopyTokenizer(const v1::TrainingJob& job,
                                          const ExportOptions& options) {
  const std::string& from =
      options.tokenizer_path.empty() ? job.spec().tokenizer().path() : options.tokenizer_path;
  if (!options.tokenizer || from.empty()) return std::string();
  const auto content = kv::ReadFile(from);
  if (absl::IsNotFound(content.status())) {
    return absl::NotFoundError(absl::StrCat("the tokenizer ", from,
                                            " is not there: name another copy by --tokenizer, or "
                                            "leave it out by --without-tokenizer"));
  }
  if (!content.ok()) return content.status();
  const bool json = absl::EndsWith(from, ".json");
  const std::string to = absl::StrCat(options.to, "/", kTokenizerNames[json ? 1 : 0]);
  ELA_RETURN_IF_ERROR(kv::WriteFileDurably(to, *content));
  return to;
}

absl::StatusOr<ExportResult> WriteFolder(StepReader* reader, const ExportOptions& options) {
  ELA_ASSIGN_OR_RETURN(const v1::TrainingJob job, JobOf(reader->manifest()));
  const v1::ModelSpec& model = job.spec().model();
  std::vector<job::ParameterInfo> parameters = job::Parameters(model);
  if (options.lobe_only) {
    std::erase_if(parameters, [](const auto& p) { return !IsLobeParameter(p.name); });
    if (parameters.empty()) return absl::NotFoundError("the model has no Memory Lobe");
  }
  ExportResult result;
  std::vector<SafetensorsEntry> entries;
  for (const job::ParameterInfo& parameter : parameters) {
    entries.push_back({parameter.name, options.bf16 ? "BF16" : "F32", parameter.shape, 0, 0});
    ++result.tensors;
    result.parameters += parameter.numel();
  }
  result.bytes = result.parameters * (options.bf16 ? 2 : 4);
  if (!options.lobe_only) {
    ELA_ASSIGN_OR_RETURN(result.tokenizer, CopyTokenizer(job, options));
  }
  ELA_RETURN_IF_ERROR(
      kv::WriteFileDurably(absl::StrCat(options.to, "/", kConfigName), job::ModelToJson(model)));
  // Last, since the weights make it an exported folder.
  ELA_ASSIGN_OR_RETURN(
      const std::unique_ptr<SafetensorsWriter> writer,
      SafetensorsWriter::Create(absl::StrCat(options.to, "/", kWeightsName), std::move(entries),
                                MetadataOf(reader->manifest(), job, options.lobe_only)));
  for (const job::ParameterInfo& parameter : parameters) {
    ELA_RETURN_IF_ERROR(AppendTensor(reader, parameter, options.bf16, writer.get()));
  }
  ELA_RETURN_IF_ERROR(writer->Finish());
  return result;
}

}  // namespace

absl::StatusOr<ExportResult> ExportStep(StepReader* reader, const ExportOptions& options) {
  const bool existed = kv::Exists(options.to);
  ELA_RETURN_IF_ERROR(kv::MakeDirectories(options.to));
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> content, kv::ListDirectory(options.to));
  if (!content.empty()) {
    return absl::AlreadyExistsError(
        absl::StrCat(options.to, " is not empty: name a new folder, or remove this one first"));
  }
  absl::StatusOr<ExportResult> result = WriteFolder(reader, options);
  if (result.ok()) return result;
  kv::RemoveTree(options.to).IgnoreError();
  if (existed) kv::MakeDirectories(options.to).IgnoreError();
  return result;
}

}  // namespace ela::checkpoints
