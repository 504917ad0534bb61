// A model outside of a checkpoint: model.safetensors, config.json (the job's model section), the
// tokenizer, modeling_ela.py and a README.md, in one folder. Written from a step, read like one.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "ela/v1/job.pb.h"

namespace ela::checkpoints {

bool IsExportedFolder(const std::string& path);

/// The folder as a step: tensors "model/<name>" in f32 (bf16, f16 and f64 files are converted), a
/// job with the model section, the objective, the document mask and the tokenizer. Errors:
/// NotFound, InvalidArgument (no model, or config.json and the tensors do not agree: names the
/// first tensor). Reading it checks the files' hashes, if they have any: DataLoss.
absl::StatusOr<std::unique_ptr<StepReader>> OpenExportedFolder(const std::string& path);

/// Of the parameters of a model, those of the Memory Lobes.
bool IsLobeParameter(const std::string& name);
inline constexpr char kMemoryLobe[] = "memory_lobe";

struct ExportOptions {
  std::string to;                         // a folder that does not exist, or is empty
  int64_t part_bytes = int64_t{4} << 30;  // more than that is cut into parts, with an index
  bool lobe_only = false;                 // the Memory Lobes alone
  bool bf16 = false;                      // rounded to nearest even; else f32
  bool tokenizer = true;                  // copy it
  std::string tokenizer_path;             // empty: the job's
};
struct ExportResult {
  int64_t tensors = 0, parameters = 0, bytes = 0;
  std::string tokenizer;  // the copy; empty: none
};
/// Errors: AlreadyExists (the folder has content), NotFound (the tokenizer is gone, there is no
/// lobe), ResourceExhausted, and those of reading. The folder is there when it is whole.
absl::StatusOr<ExportResult> ExportStep(StepReader* reader, const ExportOptions& options);

/// The job that a step was saved by. DataLoss: the manifest holds none.
absl::StatusOr<v1::TrainingJob> JobOf(const v1::StepManifest& manifest);

struct ImportOptions {
  std::string from;  // PATH[@STEP] or an exported folder: the model
  std::string lobe;  // the same, or an exported lobe: its Memory Lobes instead. Empty: none
  std::string to;    // a new checkpoint folder
};
/// Writes the weights as the one step of a new checkpoint, without moments: for training.init_from
/// and for inference. FailedPrecondition: `to` has steps already, or the lobe is of another width
/// or depth.
absl::StatusOr<v1::StepManifest> ImportStep(const ImportOptions& options);

}  // namespace ela::checkpoints
