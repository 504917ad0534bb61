// ImportStep: weights from outside, or a lobe and a model put together, as a new checkpoint.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "checkpoints/export/exported_folder.h"
#include "checkpoints/export/folder_format.h"
#include "checkpoints/kv/files.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

constexpr int64_t kShardElements = 64 << 20;  // what is in memory at once: 256 MiB

/// What is to be read of one tensor, and from where.
struct Part {
  StepReader* source;
  std::string tensor;
  int64_t begin, end;
};

/// Fills shards of at most kShardElements one after the other.
class Importer {
 public:
  Importer(std::string path, v1::StepManifest* manifest)
      : path_(std::move(path)), manifest_(manifest) {}

  absl::Status Add(StepReader* source, const job::ParameterInfo& parameter) {
    v1::TensorRecord* record = manifest_->add_tensors();
    record->set_name(absl::StrCat(kModelPrefix, parameter.name));
    record->set_dtype("f32");
    record->mutable_shape()->Assign(parameter.shape.begin(), parameter.shape.end());
    const int64_t numel = parameter.numel();
    for (int64_t at = 0; at < numel;) {
      const int64_t end = std::min(numel, at + kShardElements - elements_);
      parts_.push_back({source, record->name(), at, end});
      elements_ += end - at;
      at = end;
      if (elements_ == kShardElements) ELA_RETURN_IF_ERROR(WriteParts());
    }
    return absl::OkStatus();
  }

  absl::Status WriteParts() {
    if (parts_.empty()) return absl::OkStatus();
    memory_.resize(static_cast<size_t>(elements_));
    std::vector<Piece> pieces;
    float* to = memory_.data();
    for (const Part& part : parts_) {
      ELA_RETURN_IF_ERROR(part.source->Read(part.tensor, part.begin, part.end, to));
      pieces.push_back({part.tensor, part.begin, part.end, to, sizeof(float)});
      to += part.end - part.begin;
    }
    WriteOptions options;
    options.path = path_;
    options.step = manifest_->step();
    options.attempt = manifest_->attempt();
    options.writer = manifest_->writers_size();
    ELA_ASSIGN_OR_RETURN(v1::WriterManifest writer, WriteShard(options, pieces));
    manifest_->set_bytes(manifest_->bytes() + writer.bytes());
    *manifest_->add_writers() = std::move(writer);
    parts_.clear();
    elements_ = 0;
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  v1::StepManifest* manifest_;
  std::vector<Part> parts_;
  int64_t elements_ = 0;
  std::vector<float> memory_;
};

absl::Status TakeLobe(const v1::ModelSpec& lobe, v1::ModelSpec* model) {
  if (!lobe.memory_lobe().enabled()) {
    return absl::FailedPreconditionError("the model to take the Memory Lobe from has none");
  }
  if (lobe.hidden_size() != model->hidden_size() || lobe.num_layers() != model->num_layers()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the lobe is of ", lobe.num_layers(), " layers of width ", lobe.hidden_size(),
                     ", the model has ", model->num_layers(), " of width ", model->hidden_size(),
                     ": both must be the same"));
  }
  *model->mutable_memory_lobe() = lobe.memory_lobe();
  return absl::OkStatus();
}

absl::Status ExpectEmpty(const std::string& to) {
  const auto catalog = Catalog::OpenForReading(to);
  if (absl::IsNotFound(catalog.status())) return absl::OkStatus();
  ELA_RETURN_IF_ERROR(catalog.status());
  ELA_ASSIGN_OR_RETURN(const auto newest, (*catalog)->Latest());
  if (!newest.has_value()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      to, " is a checkpoint with steps of its own already: name a new folder by --to"));
}

}  // namespace

absl::StatusOr<v1::StepManifest> ImportStep(const ImportOptions& options) {
  ELA_RETURN_IF_ERROR(ExpectEmpty(options.to));
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<StepReader> base, OpenCheckpoint(options.from));
  ELA_ASSIGN_OR_RETURN(v1::TrainingJob job, JobOf(base->manifest()));
  v1::ModelSpec* model = job.mutable_spec()->mutable_model();
  std::unique_ptr<StepReader> lobe;
  if (!options.lobe.empty()) {
    ELA_ASSIGN_OR_RETURN(lobe, OpenCheckpoint(options.lobe));
    ELA_ASSIGN_OR_RETURN(const v1::TrainingJob lobe_job, JobOf(lobe->manifest()));
    ELA_RETURN_IF_ERROR(TakeLobe(lobe_job.spec().model(), model));
  }
  const bool existed = kv::Exists(options.to);
  absl::Cleanup undo = [&] {
    if (!existed) kv::RemoveTree(options.to).IgnoreError();
  };
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<Catalog> catalog,
                       Catalog::OpenForWriting(options.to, /*attempt=*/0));
  v1::StepManifest manifest;
  manifest.set_step(base->manifest().step());
  manifest.set_attempt(catalog->attempt());
  manifest.set_job(base->manifest().job());
  manifest.set_resolved_job(job::ToYaml(job));
  manifest.set_code_version(base->manifest().code_version());
  manifest.mutable_state()->set_step(manifest.step());
  manifest.mutable_state()->set_tokens(base->manifest().state().tokens());
  manifest.mutable_state()->set_tokenizer_hash(base->manifest().state().tokenizer_hash());
  Importer importer(options.to, &manifest);
  for (const job::ParameterInfo& parameter : job::Parameters(*model)) {
    StepReader* source =
        lobe != nullptr && IsLobeParameter(parameter.name) ? lobe.get() : base.get();
    ELA_RETURN_IF_ERROR(importer.Add(source, parameter));
  }
  ELA_RETURN_IF_ERROR(importer.WriteParts());
  manifest.set_commit_unix_ms(absl::ToUnixMillis(absl::Now()));
  ELA_RETURN_IF_ERROR(catalog->Commit(manifest));
  std::move(undo).Cancel();
  return manifest;
}

}  // namespace ela::checkpoints
