// Trainer: what comes before the first step. Every function is collective and ends in an agreement,
// so that an error on one rank ends all of them in order.
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/shards/checksums.h"
#include "data/shards/shard_reader.h"
#include "data/vocabulary.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"
#include "trainer/loop/machine.h"
#include "trainer/loop/trainer.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {
namespace {

constexpr double kGiB = 1 << 30;
// What a plan that may fill a card leaves to NCCL's buffers and to kernels: this, or a sixteenth.
constexpr int64_t kLeastLeftOnCard = int64_t{2} << 30;

std::string WhatWouldFit(v1::TrainingJob job, bool on_card, int64_t bytes) {
  const auto largest = [&] {
    const int64_t size = job::LargestMicroBatch(job, on_card, bytes);
    return size == 0 ? "" : absl::StrCat("training.micro_batch_size: ", size);
  };
  v1::TrainingSpec& training = *job.mutable_spec()->mutable_training();
  const job::MemoryPlan plan = job::PlanMemory(job, on_card);
  const int64_t model = plan.parameters + plan.gradients + plan.optimizer;
  if (model > bytes) {
    return "no micro-batch would fit beside the model's parameters, gradients and optimizer state; "
           "share the optimizer among more ranks, or train a smaller model";
  }
  if (!on_card && model + plan.staging > bytes) {
    return "no micro-batch would fit beside the model and the copy of it that checkpoint.async: "
           "true writes; set checkpoint.async: false, or share the optimizer among more ranks";
  }
  const char* const none =
      "not even sequences one at a time with training.recompute: true would fit; lower "
      "data.seq_len, or share sequences among more ranks (parallelism.sequence)";
  const std::string kept = largest();
  if (job::RecomputedLayers(job.spec()) == job.spec().model().num_layers()) {
    return kept.empty() ? none : kept + " would fit";
  }
  const char* const without =
      training.has_recompute_layers() ? " and without training.recompute_layers" : "";
  training.set_recompute(true);
  training.clear_recompute_layers();
  std::string again = largest();
  if (again.empty()) return none;
  absl::StrAppend(&again, " with training.recompute: true", without);
  return kept.empty() ? again + " would fit" : kept + " would fit, or " + again;
}

absl::StatusOr<std::shared_ptr<spdlog::logger>> OpenLog(const std::string& path, bool on_stderr) {
  try {
    std::vector<spdlog::sink_ptr> sinks = {
        std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, /*truncate=*/false)};
    if (on_stderr) sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
    auto log = std::make_shared<spdlog::logger>("ela-trainer", sinks.begin(), sinks.end());
    log->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
    log->flush_on(spdlog::level::info);
    return log;
  } catch (const spdlog::spdlog_ex& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot open the log: ", error.what()));
  }
}

absl::StatusOr<std::string> TokenizerHash(const v1::JobSpec& spec) {
  if (!spec.tokenizer().has_path() || spec.tokenizer().path().empty()) return "";
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<data::Tokenizer> tokenizer,
                       data::LoadTokenizer(spec.tokenizer().path()));
  ELA_RETURN_IF_ERROR(
      data::CheckTokenizer(*tokenizer, spec.tokenizer().path(), spec.model().vocab_size()));
  return tokenizer->hash();
}

data::LoaderOptions LoaderOptionsOf(const v1::JobSpec& spec, const std::string& tokenizer_hash) {
  data::LoaderOptions options;
  options.seq_len = spec.data().seq_len();
  options.seed = static_cast<uint64_t>(spec.training().seed());
  options.document_mask = spec.data().document_mask();
  options.vocab_size = spec.model().vocab_size();
  options.tokenizer_hash = tokenizer_hash;
  return options;
}

}  // namespace

absl::Status Trainer::Prepare() {
  ELA_RETURN_IF_ERROR(PrepareFolder());
  const std::string place =
      options_.device == nullptr
          ? absl::StrCat(options_.num_threads, " threads")
          : absl::StrCat("card ", options_.device->ordinal(), ", ", options_.device->name());
  log_->info("rank {} of {} on {}, pid {}, {}", world_->rank(), world_->size(), HostName(),
             getpid(), place);
  if (!options_.device_note.empty()) log_->warn("{}", options_.device_note);
  ELA_RETURN_IF_ERROR(CheckMemory());
  const MeshSizes sizes = {static_cast<int>(spec().parallelism().data()),
                           static_cast<int>(spec().parallelism().sequence()),
                           static_cast<int>(spec().parallelism().expert())};
  ELA_ASSIGN_OR_RETURN(mesh_, Mesh::Create(world_, sizes, spec().model().moe().num_experts()));
  ELA_RETURN_IF_ERROR(OpenData());
  ELA_RETURN_IF_ERROR(BuildModel());
  ELA_RETURN_IF_ERROR(Resume());
  return MeetCoordinator();
}

absl::Status Trainer::PrepareFolder() {
  absl::Status mine;
  auto folder = RunFolder::Create(options_.run_dir, options_.attempt, world_->rank());
  mine = folder.status();
  if (folder.ok()) {
    folder_ = *std::move(folder);
    // With a coordinator, `ela logs` shows the file, and what mpirun passes on beside it.
    const bool on_stderr = lead() && options_.progress && options_.coordinator.empty();
    auto log = OpenLog(folder_.log_file(world_->rank()), on_stderr);
    mine = log.status();
    if (log.ok()) log_ = *std::move(log);
  }
  if (mine.ok()) {
    auto fault = Fault::Parse(options_.fault);
    mine = fault.status();
    if (fault.ok()) fault_ = *fault;
  }
  if (mine.ok() && lead()) {
    mine = WriteFileAtomically(folder_.path + "/job.resolved.yaml", job::ToYaml(job_));
  }
  return AgreeOk(*world_, mine);
}

absl::Status Trainer::CheckMemory() {
  const bool on_card = options_.device != nullptr;
  const int64_t available =
      on_card ? static_cast<int64_t>(options_.device->free_bytes()) : AvailableMemory();
  int64_t ranks = options_.local_ranks;
  if (on_card) {
    ELA_ASSIGN_OR_RETURN(ranks, RanksOnCard());
  }
  v1::TrainingJob placed = job_;
  recompute_layers_ = job::RecomputedLayers(spec());
  // What experts on several ranks are sent depends on the data: no plan of it may fill the card.
  if (on_card && spec().training().recompute() && !spec().training().has_recompute_layers() &&
      spec().parallelism().expert() == 1) {
    ELA_ASSIGN_OR_RETURN(recompute_layers_, FewestRecomputedLayers(available / ranks));
    placed.mutable_spec()->mutable_training()->set_recompute_layers(recompute_layers_);
  }
  plan_ = job::PlanMemory(placed, on_card);
  const int64_t needed = ranks * plan_.taken(on_card);
  absl::Status mine;
  if ((on_card || available > 0) && needed > available) {  // 0 of the host's: unknown
    mine = absl::InvalidArgumentError(absl::StrFormat(
        "the job needs %.2f GiB on this %s (%d ranks of %.2f GiB), %.2f GiB are available: %s",
        static_cast<double>(needed) / kGiB, on_card ? "card" : "machine", ranks,
        static_cast<double>(plan_.taken(on_card)) / kGiB, static_cast<double>(available) / kGiB,
        WhatWouldFit(job_, on_card, available / ranks)));
  }
  if (lead() && recompute_layers_ > 0) {
    log_->info("{} of {} layers are recomputed in the backward pass", recompute_layers_,
               spec().model().num_layers());
  }
  return AgreeOk(*world_, mine);
}

// More than this one only where NCCL takes them for ranks of different hosts.
absl::StatusOr<int64_t> Trainer::RanksOnCard() const {
  const std::string& mine = options_.device->uuid();
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> all, GatherStrings(*world_, mine));
  return std::count(all.begin(), all.end(), mine);
}

// Recomputing is collective where sequences are sharded: all ranks recompute the same layers.
absl::StatusOr<int64_t> Trainer::FewestRecomputedLayers(int64_t available) const {
  const int64_t layers = job::FewestRecomputedLayers(
      job_, /*on_device=*/true, available - std::max(kLeastLeftOnCard, available / 16));
  std::vector<int64_t> all(static_cast<size_t>(world_->size()));
  ELA_RETURN_IF_ERROR(world_->AllGather(all.data(), &layers, sizeof layers));
  return *std::max_element(all.begin(), all.end());
}

// Damaged tokens train without a word: what a few seconds can read is read, each rank its share.
absl::Status Trainer::CheckSources(const std::vector<data::Source>& sources) {
  constexpr int64_t kMostBytes = int64_t{4} << 30;
  std::vector<std::unique_ptr<data::ShardReader>> shards;
  int64_t bytes = 0;
  for (const data::Source& source : sources) {
    ELA_ASSIGN_OR_RETURN(auto shard, data::ShardReader::Open(source.prefix));
    bytes += shard->bin().size() + shard->idx().size();
    shards.push_back(std::move(shard));
  }
  if (bytes / world_->size() > kMostBytes) {
    log_->info("{:.0f} GiB of shards are not compared with their checksums: ela data verify does",
               static_cast<double>(bytes) / kGiB);
    return absl::OkStatus();
  }
  for (const auto& shard : shards) {
    ELA_RETURN_IF_ERROR(data::CheckBlocks(*shard, world_->rank(), world_->size()));
  }
  return absl::OkStatus();
}

absl::Status Trainer::OpenData() {
  const auto open = [this]() -> absl::Status {
    ELA_ASSIGN_OR_RETURN(tokenizer_hash_, TokenizerHash(spec()));
    data::LoaderOptions options = LoaderOptionsOf(spec(), tokenizer_hash_);
    for (const v1::DataSource& source : spec().data().train()) {
      options.sources.push_back({source.path(), source.weight()});
    }
    ELA_ASSIGN_OR_RETURN(loader_, data::Loader::Open(options));
    ELA_RETURN_IF_ERROR(CheckSources(options.sources));
    if (spec().data().validation().empty() || spec().training().eval_every() == 0) {
      return absl::OkStatus();
    }
    options.sources = {{spec().data().validation(), 1}};
    options.shuffle = false;
    ELA_ASSIGN_OR_RETURN(eval_loader_, data::Loader::Open(options));
    return CheckSources(options.sources);
  };
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, open()));
  const auto stream = [this](const data::Loader* loader, uint64_t mask_seed) {
    return std::make_unique<BatchStream>(loader, spec(), mesh_->sizes(), mesh_->data_index(),
                                         mesh_->sequence_index(), mask_seed);
  };
  stream_ = stream(loader_.get(), static_cast<uint64_t>(spec().training().seed()));
  if (eval_loader_ != nullptr) eval_stream_ = stream(eval_loader_.get(), kEvalMaskSeed);
  return absl::OkStatus();
}

absl::Status Trainer::BuildModel() {
  const bool bf16 = spec().training().precision() == v1::PRECISION_BF16;
  StoreOptions store;
  store.dtype = bf16 ? kernels::DType::kBf16 : kernels::DType::kF32;
  store.device = options_.device;
  store.lobe_only = spec().training().train_only() == v1::TRAIN_ONLY_MEMORY_LOBE;
  store_ = std::make_unique<ParameterStore>(job::Parameters(spec().model()), *mesh_, store);

  kernels::Context ctx;
  if (options_.device != nullptr) {
    ctx.backend = kernels::Backend::kCuda;
    ctx.device = options_.device;
    ctx.stream = options_.device->stream();
  }
  ctx.num_threads = options_.num_threads;
  ctx.scratch = &scratch_;
  ctx.counters = &counters_;
  layer_ = MakeLayerContext(ctx, &saved_, store.dtype);
  saved_.Reserve(static_cast<size_t>(plan_.activations), ctx.backend);
  scratch_.Reserve(static_cast<size_t>(plan_.workspace), ctx.backend);
  product_rate_ = MeasureProductRate(layer_);
  ELA_RETURN_IF_ERROR(AllReduceSum(*world_, &product_rate_, 1));
  if (lead()) {
    log_->info(
        "products run at {:.3g} TFLOP/s on all ranks; a token is {:.4g} model GFLOP (6 x {} "
        "parameters in products, 12 L H D a softmax layer); MFU is the rate of these over that",
        product_rate_ * 1e-12,
        job::ModelFlopsPerToken(spec().model(), spec().data().seq_len()) * 1e-9,
        job::ActiveParameterCount(spec().model()));
  }

  const v1::MemoryLobeSpec& lobe = spec().model().memory_lobe();
  const bool causal = spec().training().objective() != v1::OBJECTIVE_MASKED_TOKEN;
  leaks_ = causal && lobe.enabled() && lobe.mode() == v1::LOBE_MODE_BIDIRECTIONAL;
  DecoderOptions decoder = {.recompute_layers = recompute_layers_, .causal = causal};
  decoder.before_part = [this](int64_t part) { return optimizer_->AwaitParameters(part); };
  decoder_ = std::make_unique<Decoder>(spec().model(), store_.get(), mesh_.get(), decoder);
  train_step_ = std::make_unique<TrainStep>(
      spec(), decoder_.get(), store_.get(), mesh_.get(),
      [this](int64_t part) { return optimizer_->StartReducing(layer_.ctx, part); });

  const v1::OptimizerSpec& o = spec().optimizer();
  OptimizerConfig config;
  config.beta1 = o.betas(0);
  config.beta2 = o.betas(1);
  config.eps = o.eps();
  config.weight_decay = o.weight_decay();
  config.grad_clip_norm = o.grad_clip_norm();
  optimizer_ = std::make_unique<Zero1Optimizer>(mesh_.get(), store_.get(), config);
  schedule_ = MakeLrSchedule(spec());
  spikes_.z_score = spec().training().spike_guard().z_score();
  spikes_.size = spec().training().spike_guard().window();
  const MetricsLabels labels = {options_.job_id.empty() ? job_.metadata().name() : options_.job_id,
                                HostName(), world_->rank(), leaks_};
  metrics_ = std::make_unique<TrainerMetrics>(labels);
  metrics_->OnMemoryPlan(plan_);
  phases_ = std::make_unique<PhaseClock>(
      options_.device, [metrics = metrics_.get()](const std::string& phase, double seconds) {
        metrics->OnPhase(phase, seconds);
      });
  return absl::OkStatus();
}

absl::Status Trainer::MeetCoordinator() {
  if (!options_.metrics_address.empty()) {
    const absl::StatusOr<std::string> at = metrics_->Serve(options_.metrics_address);
    if (at.ok()) {
      metrics_at_ = *at;
      log_->info("metrics at http://{}/metrics", metrics_at_);
    } else {
      log_->warn("{}", std::string(at.status().message()));
    }
  }
  v1::RankInfo mine;
  mine.set_rank(world_->rank());
  mine.set_host(HostName());
  mine.set_pid(getpid());
  mine.set_metrics_address(metrics_at_);
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> all,
                       GatherStrings(*world_, mine.SerializeAsString()));
  absl::Status met;
  if (client_ != nullptr) {
    std::vector<v1::RankInfo> ranks(all.size());
    for (size_t r = 0; r < all.size(); ++r) ranks[r].ParseFromString(all[r]);
    met = client_->Hello(ranks, state_.step());
    if (absl::IsFailedPrecondition(met)) met = absl::AbortedError(met.message());
    if (absl::IsUnauthenticated(met)) met = absl::InternalError(met.message());
  }
  return AgreeOk(*world_, met);
}

}  // namespace ela::trainer
