#include "trainer/inference/loaded_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/optim/zero1_optimizer.h"

namespace ela::trainer {

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(const std::string& path,
                                                               const std::string& tokenizer_path,
                                                               int num_threads) {
  std::unique_ptr<LoadedModel> model(new LoadedModel());
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoints::StepReader> reader,
                       checkpoints::OpenCheckpoint(path));
  ELA_ASSIGN_OR_RETURN(const v1::TrainingJob job,
                       job::ParseJob(reader->manifest().resolved_job(), "the checkpoint's job"));
  model->spec_ = job.spec().model();
  model->masked_ = job.spec().training().objective() == v1::OBJECTIVE_MASKED_TOKEN;
  const v1::DataSpec& data = job.spec().data();
  model->document_mask_ = !data.has_document_mask() || data.document_mask();
  const std::string wanted =
      tokenizer_path.empty() ? job.spec().tokenizer().path() : tokenizer_path;
  if (wanted.empty()) {
    model->tokenizer_error_ = "the model was trained without a tokenizer: name one by --tokenizer";
  } else if (auto tokenizer = data::LoadTokenizer(wanted); tokenizer.ok()) {
    model->tokenizer_ = *std::move(tokenizer);
  } else if (tokenizer_path.empty()) {
    model->tokenizer_error_ =
        absl::StrCat(tokenizer.status().message(), "; name another by --tokenizer");
  } else {
    return tokenizer.status();
  }
  ELA_RETURN_IF_ERROR(model->Build(CheckpointSource(reader.get()), num_threads));
  return model;
}

absl::Status LoadedModel::Build(const ParameterSource& source, int num_threads) {
  if (tokenizer_ != nullptr && tokenizer_->vocab_size() != spec_.vocab_size()) {
    return absl::InvalidArgumentError(absl::StrCat("the model's vocabulary is ", spec_.vocab_size(),
                                                   ", the tokenizer's ", tokenizer_->vocab_size(),
                                                   ": name the tokenizer it was trained with"));
  }
  const v1::MemoryLobeSpec& lobe = spec_.memory_lobe();
  const bool lobe_sees_future = lobe.enabled() && lobe.mode() == v1::LOBE_MODE_BIDIRECTIONAL;
  causal_ = !masked_ && !lobe_sees_future;
  leaks_future_ = !masked_ && lobe_sees_future;
  store_ = std::make_unique<ParameterStore>(
      job::Parameters(spec_), StoreOptions{.dtype = kernels::DType::kF32, .gradients = false});
  ELA_RETURN_IF_ERROR(store_->Fill(source));
  kernels::Context ctx;
  ctx.num_threads = num_threads;
  ctx.scratch = &scratch_;
  ctx.counters = &counters_;
  context_ = MakeLayerContext(ctx, &saved_);
  decoder_ = std::make_unique<Decoder>(spec_, store_.get(), /*mesh=*/nullptr,
                                       DecoderOptions{.recompute = false, .causal = !masked_});
  return absl::OkStatus();
}

absl::StatusOr<const data::Tokenizer*> LoadedModel::tokenizer() const {
  if (tokenizer_ == nullptr) return absl::NotFoundError(tokenizer_error_);
  return tokenizer_.get();
}

absl::StatusOr<TokenRows> LoadedModel::Rows(const std::vector<int32_t>& ids, bool closed,
                                            int64_t copies) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < spec_.vocab_size()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token ", i, " is ", ids[i], ", the vocabulary has ", spec_.vocab_size()));
  }
  const int64_t length = static_cast<int64_t>(ids.size()) - (closed ? 1 : 0);
  if (length < 1) {
    return absl::InvalidArgumentError(closed ? "a sequence needs two tokens: one to predict from, "
                                               "one to predict"
                                             : "a sequence needs a token");
  }
  data::Batch batch;
  batch.sequences = copies;
  batch.length = length;
  batch.document_starts.assign(static_cast<size_t>(copies), {0});
  for (int64_t i = 0; i < copies * length; ++i) {
    const size_t at = static_cast<size_t>(i % length);
    batch.ids.push_back(ids[at]);
    batch.targets.push_back(at + 1 < ids.size() ? ids[at + 1] : -1);
    batch.positions.push_back(static_cast<int32_t>(at));
  }
  batch.valid_targets = copies * (static_cast<int64_t>(ids.size()) - 1);
  return TokenRows(std::move(batch), length, /*shard=*/0, /*shards=*/1);
}

}  // namespace ela::trainer
