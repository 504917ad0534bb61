// ela-checkpoint list, describe.
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/cli/commands.h"
#include "checkpoints/cli/text.h"
#include "checkpoints/tiling.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

using nlohmann::ordered_json;

ordered_json Summary(const v1::StepManifest& manifest) {
  const v1::TrainerState& state = manifest.state();
  return {{"step", manifest.step()},
          {"attempt", manifest.attempt()},
          {"job", manifest.job()},
          {"saved", Isoformat(manifest.commit_unix_ms())},
          {"bytes", manifest.bytes()},
          {"shards", manifest.writers_size()},
          {"tensors", manifest.tensors_size()},
          {"tokens", state.tokens()},
          {"mesh",
           {{"data", state.data()}, {"sequence", state.sequence()}, {"expert", state.expert()}}}};
}

std::string Mesh(const v1::TrainerState& state) {
  if (state.data() == 0) return "-";
  return absl::StrCat(state.data(), "x", state.sequence(), "x", state.expert());
}

std::string Shape(const v1::TensorRecord& tensor) {
  return absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]");
}

ordered_json Described(const v1::StepManifest& manifest) {
  const v1::TrainerState& state = manifest.state();
  ordered_json json = Summary(manifest);
  json["code_version"] = manifest.code_version();
  json["state"] = {{"consumed_samples", state.consumed_samples()},
                   {"skipped_steps", state.skipped_steps()},
                   {"optimizer_steps", state.optimizer_steps()},
                   {"data_fingerprint", state.data_fingerprint()},
                   {"tokenizer_hash", state.tokenizer_hash()},
                   {"elapsed_seconds", state.elapsed_seconds()}};
  const auto job = JobOf(manifest);
  json["job_file"] = job.ok() ? ordered_json::parse(job::ToJson(*job)) : ordered_json();
  json["tensors"] = ordered_json::array();
  for (const v1::TensorRecord& tensor : manifest.tensors()) {
    json["tensors"].push_back(
        {{"name", tensor.name()},
         {"dtype", tensor.dtype()},
         {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())}});
  }
  return json;
}

std::string ModelLine(const v1::StepManifest& manifest) {
  const auto job = JobOf(manifest);
  if (!job.ok()) return std::string(job.status().message());
  const v1::ModelSpec& model = job->spec().model();
  std::string line =
      absl::StrCat(FormatCount(job::ParameterCount(model)), " parameters: ", model.num_layers(),
                   " layers, hidden size ", model.hidden_size(), ", ", model.num_attention_heads(),
                   " heads, ", model.moe().num_experts(), " experts");
  if (model.memory_lobe().enabled()) absl::StrAppend(&line, ", Memory Lobe");
  return absl::StrCat(line, ", vocabulary ", model.vocab_size());
}

}  // namespace

absl::Status ListCommand(const std::string& path, const Output& output) {
  ELA_ASSIGN_OR_RETURN(const std::string folder, FindCheckpointFolder(path));
  ELA_ASSIGN_OR_RETURN(const auto catalog, Catalog::OpenForReading(folder));
  ELA_ASSIGN_OR_RETURN(const std::vector<v1::StepManifest> steps, catalog->List());
  if (output.json) {
    ordered_json json = ordered_json::array();
    for (const v1::StepManifest& manifest : steps) json.push_back(Summary(manifest));
    *output.out << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  if (steps.empty()) {
    *output.err << "no step is committed in " << folder << " yet\n";
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::StepManifest& manifest : steps) {
    rows.push_back({absl::StrCat(manifest.step()), absl::StrCat(manifest.attempt()),
                    FormatTime(manifest.commit_unix_ms()), FormatBytes(manifest.bytes()),
                    absl::StrCat(manifest.writers_size()), Mesh(manifest.state()),
                    FormatCount(manifest.state().tokens())});
  }
  *output.out << RenderTable({">STEP", ">ATTEMPT", "SAVED", ">SIZE", ">SHARDS", "MESH", ">TOKENS"},
                             rows);
  return absl::OkStatus();
}

absl::Status DescribeCommand(const std::string& path_at_step, const Output& output) {
  ELA_ASSIGN_OR_RETURN(const auto reader, OpenCheckpoint(path_at_step));
  const v1::StepManifest& manifest = reader->manifest();
  if (output.json) {
    *output.out << Described(manifest).dump(2) << "\n";
    return absl::OkStatus();
  }
  const v1::TrainerState& state = manifest.state();
  const auto text = [](const std::string& value) { return value.empty() ? "-" : value; };
  *output.out << RenderPairs(
      {{"step", absl::StrCat(manifest.step(), " of attempt ", manifest.attempt())},
       {"saved", FormatTime(manifest.commit_unix_ms())},
       {"job", text(manifest.job())},
       {"model", ModelLine(manifest)},
       {"code", text(manifest.code_version())},
       {"mesh", Mesh(state) + " (data x sequence x expert)"},
       {"trained on", absl::StrCat(FormatCount(state.tokens()), " tokens, ",
                                   FormatCount(state.consumed_samples()), " samples")},
       {"steps skipped", absl::StrCat(state.skipped_steps())},
       {"data", text(state.data_fingerprint())},
       {"tokenizer", text(state.tokenizer_hash())},
       {"size",
        absl::StrCat(FormatBytes(manifest.bytes()), " in ", manifest.writers_size(), " shards")}});
  std::vector<std::vector<std::string>> rows;
  for (const v1::TensorRecord& tensor : manifest.tensors()) {
    rows.push_back(
        {tensor.name(), tensor.dtype(), Shape(tensor), FormatCount(ElementCount(tensor))});
  }
  *output.out << "\n" << RenderTable({"TENSOR", "DTYPE", "SHAPE", ">ELEMENTS"}, rows);
  return absl::OkStatus();
}

}  // namespace ela::checkpoints
