#include "trainer/inference/loaded_model.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/loop/machine.h"
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
  free_bytes_ = place.free_bytes;
  context_.ctx.device = place.device;
  ELA_RETURN_IF_ERROR(Agree(
      world,
      CheckFits("the model's parameters",
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
                                       DecoderOptions{.causal = !masked_});
  return absl::OkStatus();
}

int64_t LoadedModel::FreeBytes() const {
  if (free_bytes_) return free_bytes_();
  if (context_.ctx.device != nullptr) {
    return static_cast<int64_t>(context_.ctx.device->free_bytes());
  }
  const int64_t available = AvailableMemory();
  return available > 0 ? available : std::numeric_limits<int64_t>::max();
}

absl::Status LoadedModel::CheckFits(const std::string& what, int64_t lacking) const {
  const int64_t free = lacking > 0 ? FreeBytes() : 0;
  if (lacking <= free) return absl::OkStatus();
  const bool card = context_.ctx.device != nullptr;
  constexpr double kGiB = 1 << 30;
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s need %.2f GiB more on the %s, %.2f GiB are free%s", what,
                      static_cast<double>(lacking) / kGiB, card ? "card" : "machine",
                      static_cast<double>(free) / kGiB, card ? ": use --device cpu" : ""));
}

// As a job's: its backward pass, which works with more than a forward pass, is counted too.
PassMemory LoadedModel::MemoryOf(int64_t sequences, int64_t length) const {
  v1::TrainingJob job;
  v1::JobSpec& spec = *job.mutable_spec();
  *spec.mutable_model() = spec_;
  spec.mutable_data()->set_seq_len(std::max<int64_t>(1, length) * shards());
  spec.mutable_training()->set_micro_batch_size(sequences);
  const bool bf16 = context_.element == kernels::DType::kBf16;
  spec.mutable_training()->set_precision(bf16 ? v1::PRECISION_BF16 : v1::PRECISION_FP32);
  if (masked_) spec.mutable_training()->set_objective(v1::OBJECTIVE_MASKED_TOKEN);
  spec.mutable_parallelism()->set_sequence(shards());
  const job::MemoryPlan plan = job::PlanMemory(job, context_.ctx.device != nullptr);
  return {plan.activations, plan.workspace};
}

int64_t LoadedModel::Lacking(const PassMemory& memory) const {
  return std::max<int64_t>(0, memory.saved - held_.saved) +
         std::max<int64_t>(0, memory.scratch - held_.scratch);
}

void LoadedModel::Reserve(const PassMemory& memory) {
  held_ = {std::max(held_.saved, memory.saved), std::max(held_.scratch, memory.scratch)};
  saved_.Reserve(static_cast<size_t>(held_.saved), context_.ctx.backend);
  scratch_.Reserve(static_cast<size_t>(held_.scratch), context_.ctx.backend);
}

absl::Status LoadedModel::Forward(const TokenRows& rows) {
  const int64_t sequences = std::max<int64_t>(1, rows.sequences());
  const PassMemory memory = MemoryOf(sequences, rows.count() / sequences);
  ELA_RETURN_IF_ERROR(
      Agree(sequence(), CheckFits(absl::StrCat(rows.count(), " tokens at once"), Lacking(memory))));
  decoder_->Forget(context_);
  Reserve(memory);
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
