#include "trainer/inference/loaded_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

/// Whether a card has `needed` bytes, of which it has lent `held` already.
absl::Status CheckFits(const kernels::CudaDevice* device, const std::string& what, size_t held,
                       int64_t needed) {
  if (device == nullptr) return absl::OkStatus();
  const auto available = static_cast<int64_t>(device->free_bytes() + held);
  if (needed <= available) return absl::OkStatus();
  constexpr double kGiB = 1 << 30;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s need %.2f GiB on the card, %.2f GiB are available: use --device cpu", what,
      static_cast<double>(needed) / kGiB, static_cast<double>(available) / kGiB));
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(const std::string& path,
                                                               const std::string& tokenizer_path,
                                                               const ModelPlace& place) {
  std::unique_ptr<LoadedModel> model(new LoadedModel());
  auto reader = checkpoints::OpenCheckpoint(path);
  absl::Status status = reader.status();
  if (status.ok()) status = model->Open((*reader)->manifest().resolved_job(), tokenizer_path);
  ELA_RETURN_IF_ERROR(Agree(place.world, status));
  ELA_RETURN_IF_ERROR(model->Build(CheckpointSource(reader->get()), place));
  return model;
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Create(const v1::TrainingJob& job,
                                                                 const ParameterSource& source,
                                                                 const ModelPlace& place) {
  std::unique_ptr<LoadedModel> model(new LoadedModel());
  model->Describe(job);
  model->tokenizer_error_ = "the model has no tokenizer";
  ELA_RETURN_IF_ERROR(model->Build(source, place));
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

absl::Status LoadedModel::Build(const ParameterSource& source, const ModelPlace& place) {
  Communicator* world = place.world;
  if (world != nullptr && world->size() > 1) {
    ELA_ASSIGN_OR_RETURN(
        mesh_, Mesh::Create(world, {.sequence = world->size()}, spec_.moe().num_experts()));
  }
  ELA_RETURN_IF_ERROR(Agree(
      world,
      CheckFits(place.device, "the model's parameters", 0,
                job::ParameterCount(spec_) * static_cast<int64_t>(kernels::SizeOf(place.dtype)))));
  store_ = std::make_unique<ParameterStore>(
      job::Parameters(spec_),
      StoreOptions{.dtype = place.dtype, .gradients = false, .device = place.device});
  ELA_RETURN_IF_ERROR(Agree(world, store_->Fill(source)));
  kernels::Context ctx = store_->memory();
  ctx.num_threads = place.num_threads;
  ctx.scratch = &scratch_;
  ctx.counters = &counters_;
  context_ = MakeLayerContext(ctx, &saved_, place.dtype);
  decoder_ = std::make_unique<Decoder>(spec_, store_.get(), mesh_.get(),
                                       DecoderOptions{.recompute = false, .causal = !masked_});
  return absl::OkStatus();
}

// Host memory grows as it is taken; a card's is planned, as a job's is, and taken at once.
absl::Status LoadedModel::Reserve(int64_t sequences, int64_t length) {
  v1::TrainingJob job;
  v1::JobSpec& spec = *job.mutable_spec();
  *spec.mutable_model() = spec_;
  spec.mutable_data()->set_seq_len(length * shards());
  spec.mutable_training()->set_micro_batch_size(sequences);
  const bool bf16 = context_.element == kernels::DType::kBf16;
  spec.mutable_training()->set_precision(bf16 ? v1::PRECISION_BF16 : v1::PRECISION_FP32);
  if (masked_) spec.mutable_training()->set_objective(v1::OBJECTIVE_MASKED_TOKEN);
  spec.mutable_parallelism()->set_sequence(shards());
  const job::MemoryPlan plan = job::PlanMemory(job, /*on_device=*/true);
  const std::string what = absl::StrCat(sequences * length, " tokens at once");
  ELA_RETURN_IF_ERROR(
      CheckFits(context_.ctx.device, what, reserved_, plan.activations + plan.workspace));
  saved_.Reserve(static_cast<size_t>(plan.activations), context_.ctx.backend);
  scratch_.Reserve(static_cast<size_t>(plan.workspace), context_.ctx.backend);
  reserved_ = std::max(reserved_,
                       static_cast<size_t>(plan.activations) + static_cast<size_t>(plan.workspace));
  return absl::OkStatus();
}

absl::Status LoadedModel::Forward(const TokenRows& rows) {
  if (context_.ctx.device != nullptr) {
    const int64_t sequences = std::max<int64_t>(1, rows.sequences());
    const absl::Status mine = Reserve(sequences, rows.count() / sequences);
    ELA_RETURN_IF_ERROR(Agree(sequence(), mine));
  }
  return decoder_->Forward(context_, rows, /*routing=*/nullptr);
}

void LoadedModel::Synchronize() const {
  if (context_.ctx.device != nullptr) context_.ctx.device->Synchronize();
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
