#include "trainer/inference/loaded_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {

namespace {

/// What only some ranks may meet; all end if one does.
absl::Status Agree(Communicator* world, const absl::Status& mine) {
  return world == nullptr || world->size() == 1 ? mine : AgreeOk(*world, mine);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(const std::string& path,
                                                               const std::string& tokenizer_path,
                                                               int num_threads,
                                                               Communicator* world) {
  std::unique_ptr<LoadedModel> model(new LoadedModel());
  auto reader = checkpoints::OpenCheckpoint(path);
  absl::Status status = reader.status();
  if (status.ok()) status = model->Open((*reader)->manifest().resolved_job(), tokenizer_path);
  ELA_RETURN_IF_ERROR(Agree(world, status));
  ELA_RETURN_IF_ERROR(model->Build(CheckpointSource(reader->get()), num_threads, world));
  return model;
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Create(const v1::TrainingJob& job,
                                                                 const ParameterSource& source,
                                                                 int num_threads,
                                                                 Communicator* world) {
  std::unique_ptr<LoadedModel> model(new LoadedModel());
  model->Describe(job);
  model->tokenizer_error_ = "the model has no tokenizer";
  ELA_RETURN_IF_ERROR(model->Build(source, num_threads, world));
  return model;
}

void LoadedModel::Describe(const v1::TrainingJob& job) {
  spec_ = job.spec().model();
  masked_ = job.spec().training().objective() == v1::OBJECTIVE_MASKED_TOKEN;
  const v1::DataSpec& data = job.spec().data();
  document_mask_ = !data.has_document_mask() || data.document_mask();
  const v1::MemoryLobeSpec& lobe = spec_.memory_lobe();
  const bool lobe_sees_future = lobe.enabled() && lobe.mode() == v1::LOBE_MODE_BIDIRECTIONAL;
  causal_ = !masked_ && !lobe_sees_future;
  leaks_future_ = !masked_ && lobe_sees_future;
}

absl::Status LoadedModel::Open(const std::string& resolved_job, const std::string& tokenizer_path) {
  ELA_ASSIGN_OR_RETURN(const v1::TrainingJob job,
                       job::ParseJob(resolved_job, "the checkpoint's job"));
  Describe(job);
  const std::string wanted =
      tokenizer_path.empty() ? job.spec().tokenizer().path() : tokenizer_path;
  if (wanted.empty()) {
    tokenizer_error_ = "the model was trained without a tokenizer: name one by --tokenizer";
    return absl::OkStatus();
  }
  auto tokenizer = data::LoadTokenizer(wanted);
  if (!tokenizer.ok() && tokenizer_path.empty()) {
    tokenizer_error_ = absl::StrCat(tokenizer.status().message(), "; name another by --tokenizer");
    return absl::OkStatus();
  }
  ELA_RETURN_IF_ERROR(tokenizer.status());
  tokenizer_ = *std::move(tokenizer);
  if (tokenizer_->vocab_size() == spec_.vocab_size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the model's vocabulary is ", spec_.vocab_size(),
                                                 ", the tokenizer's ", tokenizer_->vocab_size(),
                                                 ": name the tokenizer it was trained with"));
}

absl::Status LoadedModel::Build(const ParameterSource& source, int num_threads,
                                Communicator* world) {
  if (world != nullptr && world->size() > 1) {
    ELA_ASSIGN_OR_RETURN(
        mesh_, Mesh::Create(world, {.sequence = world->size()}, spec_.moe().num_experts()));
  }
  store_ = std::make_unique<ParameterStore>(
      job::Parameters(spec_), StoreOptions{.dtype = kernels::DType::kF32, .gradients = false});
  ELA_RETURN_IF_ERROR(Agree(world, store_->Fill(source)));
  kernels::Context ctx;
  ctx.num_threads = num_threads;
  ctx.scratch = &scratch_;
  ctx.counters = &counters_;
  context_ = MakeLayerContext(ctx, &saved_);
  decoder_ = std::make_unique<Decoder>(spec_, store_.get(), mesh_.get(),
                                       DecoderOptions{.recompute = false, .causal = !masked_});
  return absl::OkStatus();
}

absl::StatusOr<const data::Tokenizer*> LoadedModel::tokenizer() const {
  if (tokenizer_ == nullptr) return absl::NotFoundError(tokenizer_error_);
  return tokenizer_.get();
}

absl::StatusOr<TokenRows> LoadedModel::Rows(const std::vector<int32_t>& ids, bool closed) const {
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
  const int64_t begin = ShardBegin(length, shard(), shards());
  data::Batch batch;
  batch.sequences = 1;
  batch.length = ShardBegin(length, shard() + 1, shards()) - begin;
  batch.document_starts = {{0}};
  for (int64_t i = 0; i < batch.length; ++i) {
    const size_t at = static_cast<size_t>(begin + i);
    const bool last = at + 1 == ids.size();
    batch.ids.push_back(ids[at]);
    batch.targets.push_back(last ? -1 : ids[at + 1]);
    batch.positions.push_back(static_cast<int32_t>(at));
    batch.valid_targets += last ? 0 : 1;
  }
  return TokenRows(std::move(batch), length, shard(), shards());
}

}  // namespace ela::trainer
