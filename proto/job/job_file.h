// Job files: YAML or JSON to ela.v1.TrainingJob, strictly, driven by the schema's own descriptors and options.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "ela/v1/job.pb.h"

namespace ela::job {

/// Parses the text of a job file. Errors (InvalidArgument, one line): "job.yaml:12: spec.model.hiden_size: unknown
/// key; did you mean hidden_size?", a value of the wrong type, an unknown enum value with the known ones, a number out
/// of its bounds, a key given twice. `file_name` is only quoted in messages.
absl::StatusOr<v1::TrainingJob> ParseJob(std::string_view text, std::string_view file_name);
absl::StatusOr<v1::TrainingJob> LoadJobFile(const std::string& path);

/// Applies one "a.b=c" override: the path may leave out the leading "spec."; `[0]` indexes a list; c is parsed as YAML.
absl::Status ApplySet(std::string_view assignment, v1::TrainingJob* job);

/// Fills every key that is not set: first from the preset, then from the schema's defaults, then the derived ones
/// (ranks_per_node, micro_batch_size). Relative paths become absolute against `source_dir` (empty: left as they are).
/// Idempotent: resolving a resolved job changes nothing.
v1::TrainingJob Resolve(const v1::TrainingJob& job, const std::string& source_dir);

/// Every problem of a resolved job that the spec alone shows, one line each, with the key's path and what to do;
/// empty: valid. Looks at no file.
std::vector<std::string> Validate(const v1::TrainingJob& resolved);

/// The job as YAML (schema order, only set keys) and as JSON; ParseJob reads both back to the same job.
std::string ToYaml(const v1::TrainingJob& job);
std::string ToJson(const v1::TrainingJob& job);

/// The `model` section as JSON, key for key: `config.json` of an exported model; and back.
std::string ModelToJson(const v1::ModelSpec& model);
absl::StatusOr<v1::ModelSpec> ModelFromJson(std::string_view json, std::string_view file_name);

/// Name of an enum value as a job file writes it, e.g. "hadamard_exp".
std::string EnumKey(const google::protobuf::EnumValueDescriptor* value);

/// "90s", "30m", "1h30m", "250ms" to milliseconds. InvalidArgument otherwise.
absl::StatusOr<int64_t> ParseDurationMs(std::string_view text);

/// Closest of `known` by edit distance, empty if none is close.
std::string Nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace ela::job
