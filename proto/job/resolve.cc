// Fills what a job leaves open: presets, then the schema's defaults, then what follows from other
// keys, then absolute paths.

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "proto/job/job_file.h"
#include "proto/job/reader.h"
#include "proto/job/schema.h"
#include "proto/job/yaml_tree.h"

namespace ela::job {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Preset values, in job-file form: what both presets share is in the schema's defaults. Design:
// model.md section 4.
constexpr std::string_view kPaper = R"(
  vocab_size: 6400
  hidden_size: 256
  num_layers: 4
  num_attention_heads: 4
  residual: hyper_link
  final_norm: false
  moe: {num_experts: 4, top_k: 2, intermediate_size: 256}
  memory_lobe: {norm: false}
)";
constexpr std::string_view kRecommended = R"(
  attention: {kernel: hadamard_exp, decay: head, softmax_every: 3}
  residual: pre_norm
  final_norm: true
  moe: {label_bias: inner}
  memory_lobe: {enabled: false}
)";

// The preset's own values, overwritten by every key that the job sets: merging keeps the later
// value.
void FillPreset(v1::ModelSpec* model) {
  std::string_view text;
  switch (model->preset()) {
    case v1::PRESET_PAPER:
      text = kPaper;
      break;
    case v1::PRESET_RECOMMENDED:
      text = kRecommended;
      break;
    default:
      return;
  }
  const absl::StatusOr<YamlNode> node = ParseYaml(text, "preset");
  v1::ModelSpec filled;
  if (!node.ok() || !FillMessage(*node, "preset", "", &filled).ok()) return;
  filled.MergeFrom(*model);
  *model = std::move(filled);
}

void FillDefaults(Message* message) {
  const auto* reflection = message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->field(i);
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (field->is_map()) continue;
    if (is_message && !field->is_repeated()) {
      FillDefaults(reflection->MutableMessage(message, field));
    } else if (is_message) {
      for (int k = 0; k < reflection->FieldSize(*message, field); ++k) {
        FillDefaults(reflection->MutableRepeatedMessage(message, field, k));
      }
    } else if (const std::string text = DefaultOf(field); !text.empty()) {
      const bool set = field->is_repeated() ? reflection->FieldSize(*message, field) > 0
                                            : reflection->HasField(*message, field);
      const absl::StatusOr<YamlNode> node = ParseYaml(text, "default");
      // A default that does not parse leaves its key unset, which Validate reports; a test parses
      // them all.
      if (!set && node.ok())
        FillField(*node, "default", KeyOf(field), field, message).IgnoreError();
    }
  }
}

void FillDerived(v1::JobSpec* spec) {
  const int64_t data = spec->parallelism().data();
  const int64_t world = data * spec->parallelism().sequence();
  v1::TrainingSpec* training = spec->mutable_training();
  if (!training->has_micro_batch_size() && training->has_global_batch_size() && data > 0 &&
      training->global_batch_size() % data == 0) {
    training->set_micro_batch_size(training->global_batch_size() / data);
  }
  v1::ResourcesSpec* resources = spec->mutable_resources();
  if (!resources->has_ranks_per_node() && resources->nodes() > 0 &&
      world % resources->nodes() == 0) {
    resources->set_ranks_per_node(world / resources->nodes());
  }
}

std::string Absolute(const std::string& path, const std::string& source_dir) {
  const std::filesystem::path given(path);
  if (path.empty() || given.is_absolute()) return path;
  return (std::filesystem::path(source_dir) / given).lexically_normal().string();
}

void MakePathsAbsolute(const std::string& dir, v1::JobSpec* spec) {
  if (spec->tokenizer().has_path()) {
    spec->mutable_tokenizer()->set_path(Absolute(spec->tokenizer().path(), dir));
  }
  for (v1::DataSource& source : *spec->mutable_data()->mutable_train()) {
    if (source.has_path()) source.set_path(Absolute(source.path(), dir));
  }
  if (spec->data().has_validation()) {
    spec->mutable_data()->set_validation(Absolute(spec->data().validation(), dir));
  }
  if (spec->training().has_init_from()) {
    spec->mutable_training()->set_init_from(Absolute(spec->training().init_from(), dir));
  }
  if (spec->checkpoint().has_path()) {
    spec->mutable_checkpoint()->set_path(Absolute(spec->checkpoint().path(), dir));
  }
}

}  // namespace

v1::TrainingJob Resolve(const v1::TrainingJob& job, const std::string& source_dir) {
  v1::TrainingJob resolved = job;
  if (!resolved.has_api_version()) resolved.set_api_version("ela/v1");
  if (!resolved.has_kind()) resolved.set_kind("TrainingJob");
  FillPreset(resolved.mutable_spec()->mutable_model());
  FillDefaults(&resolved);
  FillDerived(resolved.mutable_spec());
  if (!source_dir.empty()) MakePathsAbsolute(source_dir, resolved.mutable_spec());
  return resolved;
}

}  // namespace ela::job
