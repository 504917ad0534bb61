// One training step of a job's model on one rank, phase by phase: what a step of the trainer does,
// with random tokens in place of the job's data. On a card with resources.device cuda (or auto).
//
//   train_step_bench [--job FILE] [--set KEY=VALUE]... [--threads N] [--steps N] [--contexts L,...]
//                    [--json]
//
// --contexts: instead of the job's sequence length each of these, at the job's tokens a step or one
// sequence where that is longer; micro-batches of at most 65,536 tokens or one sequence; as few
// layers are recomputed as the memory plan allows, and a context that does not fit with all of them
// recomputed is said to. --json prints a line for each context instead of the tables
// (torch_bench.py reads it).
//
//   tokens/s = tokens of the global batch / (forward, backward, gradient sums and norm, AdamW)
//   share of the product rate = model FLOP a token x tokens/s / FLOP/s of a bf16 (fp32 jobs: fp32)
//     product of 8192^3 (CPU: 768^3) of random numbers, measured first in the same run
//   model FLOP a token = 6 x parameters in products (experts: top_k of them; the embedding once, as
//     the output head) + 12 L H D a softmax layer
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "tests/bench/drawn_values.h"
#include "tests/bench/step_phases.h"
#include "trainer/loop/choose_device.h"
#include "trainer/loop/machine.h"
#include "trainer/loop/train_step.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

constexpr int64_t kMicroBatchTokens = 65536;  // of a context that --contexts names

struct Options {
  std::string job_file = "deploy/jobs/demo.yaml";
  std::vector<std::string> overrides;
  std::vector<int64_t> contexts;
  int threads = ChooseThreads(1);
  int steps = 20;
  bool json = false;
};

/// The model of a job with its optimizer.
struct Model {
  std::unique_ptr<Communicator> world = MakeSingleRank({});
  std::unique_ptr<kernels::CudaDevice> device;  // null: the CPU
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<ParameterStore> store;
  std::unique_ptr<Zero1Optimizer> optimizer;
  kernels::DType dtype = kernels::DType::kF32;

  absl::Status Build(const v1::JobSpec& spec, kernels::Context* ctx) {
    ELA_ASSIGN_OR_RETURN(ChosenDevice chosen, ChooseDevice(spec.resources().device(), *world));
    device = std::move(chosen.device);
    if (device != nullptr) {
      ctx->backend = kernels::Backend::kCuda;
      ctx->device = device.get();
      ctx->stream = device->stream();
    }
    ELA_ASSIGN_OR_RETURN(mesh, Mesh::Create(world.get(), {}, spec.model().moe().num_experts()));
    if (spec.training().precision() == v1::PRECISION_BF16) dtype = kernels::DType::kBf16;
    store = std::make_unique<ParameterStore>(job::Parameters(spec.model()), *mesh,
                                             StoreOptions{.dtype = dtype, .device = device.get()});
    optimizer = std::make_unique<Zero1Optimizer>(mesh.get(), store.get(), OptimizerConfig());
    return optimizer->Fill(*ctx, bench::DrawValues);
  }
};

/// Steps at one context.
class Bench {
 public:
  Bench(const v1::TrainingJob& job, const Options& options, Model* model, kernels::Context ctx,
        double product_rate)
      : spec_(job.spec()),
        plan_(job::PlanMemory(job, model->device != nullptr)),
        options_(options),
        model_(model),
        product_rate_(product_rate),
        flops_per_token_(job::ModelFlopsPerToken(spec_.model(), spec_.data().seq_len())),
        phases_(model->device.get()) {
    ctx.scratch = &scratch_;
    layer_ = MakeLayerContext(ctx, &saved_, model->dtype);
    saved_.Reserve(static_cast<size_t>(plan_.activations), ctx.backend);
    scratch_.Reserve(static_cast<size_t>(plan_.workspace), ctx.backend);
    const DecoderOptions decoder = {.recompute_layers = job::RecomputedLayers(spec_)};
    decoder_ =
        std::make_unique<Decoder>(spec_.model(), model->store.get(), model->mesh.get(), decoder);
    step_ =
        std::make_unique<TrainStep>(spec_, decoder_.get(), model->store.get(), model->mesh.get());
  }

  absl::Status Run() {
    const int warm_up = options_.contexts.empty() ? 2 : 1;
    for (int i = -warm_up; i < options_.steps; ++i) {
      ELA_RETURN_IF_ERROR(Step(i + warm_up + 1));
      if (i < 0) phases_.Forget();
    }
    options_.json ? PrintJson() : PrintTable();
    return absl::OkStatus();
  }

 private:
  // Other tokens each step, each as likely, in sequences of one document.
  StepBatch RandomBatch() {
    const int64_t length = spec_.data().seq_len();
    std::uniform_int_distribution<int32_t> token(
        0, static_cast<int32_t>(spec_.model().vocab_size()) - 1);
    StepBatch out;
    int64_t left = spec_.training().global_batch_size();
    while (left > 0) {
      data::Batch batch;
      batch.sequences = std::min(left, spec_.training().micro_batch_size());
      batch.length = length;
      left -= batch.sequences;
      batch.document_starts.assign(static_cast<size_t>(batch.sequences), {0});
      for (int64_t i = 0; i < batch.sequences * length; ++i) {
        batch.ids.push_back(token(engine_));
        batch.targets.push_back(token(engine_));
        batch.positions.push_back(static_cast<int32_t>(i % length));
      }
      batch.valid_targets = batch.sequences * length;
      out.valid_targets += batch.valid_targets;
      out.micro.emplace_back(std::move(batch), length, 0, 1);
    }
    micro_batches_ = static_cast<double>(out.micro.size());
    return out;
  }

  absl::Status Step(int64_t number) {
    const StepBatch batch = RandomBatch();
    scratch_.Reserve(scratch_.peak_bytes(), layer_.ctx.backend);
    saved_.Reserve(saved_.peak_bytes(), layer_.ctx.backend);
    // A forward pass more than the step's own: to tell it from the backward pass.
    for (const TokenRows& rows : batch.micro) {
      if (options_.json) break;
      RoutingStatistics routing(spec_.model().num_layers(), spec_.model().moe().num_experts());
      ELA_RETURN_IF_ERROR(
          phases_.Time("forward", [&] { return decoder_->Forward(layer_, rows, &routing); }));
      decoder_->Forget(layer_);
    }
    ELA_ASSIGN_OR_RETURN(const StepLoss loss, phases_.Time("forward_backward", [&] {
      return step_->Run(layer_, batch, absl::OkStatus(), 0);
    }));
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict, phases_.Time("reduce", [&] {
      return model_->optimizer->ReduceGradients(layer_.ctx, loss.locally_finite);
    }));
    if (!verdict.finite) return absl::InternalError("a gradient is not finite");
    const absl::Status updated = phases_.Time(
        "update", [&] { return model_->optimizer->Update(layer_.ctx, verdict, 1e-4, number); });
    phases_.EndStep();
    return updated;
  }

  double tokens() const {
    return static_cast<double>(spec_.training().global_batch_size() * spec_.data().seq_len());
  }
  double StepSeconds() const {
    return phases_.wall("forward_backward") + phases_.wall("reduce") + phases_.wall("update");
  }
  double StepCpuSeconds() const {
    return phases_.cpu("forward_backward") + phases_.cpu("reduce") + phases_.cpu("update");
  }
  double Share() const { return flops_per_token_ * tokens() / StepSeconds() / product_rate_; }

  void PrintJson() const {
    const nlohmann::ordered_json line = {
        {"context", spec_.data().seq_len()},
        {"layers", spec_.model().num_layers()},
        {"experts", spec_.model().moe().num_experts()},
        {"micro_batch", spec_.training().micro_batch_size()},
        {"recomputed_layers", job::RecomputedLayers(spec_)},
        {"tokens", tokens()},
        {"wall", StepSeconds()},
        {"cpu", StepCpuSeconds()},
        {"tokens_per_second", tokens() / StepSeconds()},
        {"model_flops_per_token", flops_per_token_},
        {"product_flops_per_second", product_rate_},
        {"share_of_product_rate", Share()},
        {"planned_bytes", {plan_.activations, plan_.workspace}},
        {"taken_bytes", {saved_.peak_bytes(), scratch_.peak_bytes()}}};
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
  }

  void PrintTable() const {
    const double forward = micro_batches_ * phases_.wall("forward");
    const double cpu = micro_batches_ * phases_.cpu("forward");
    const int64_t recomputed = job::RecomputedLayers(spec_);
    std::printf(
        "%s, %.0f tokens a step in sequences of %lld, micro-batches of %lld%s, %s; "
        "medians of %d steps\n",
        options_.job_file.c_str(), tokens(), static_cast<long long>(spec_.data().seq_len()),
        static_cast<long long>(spec_.training().micro_batch_size()),
        recomputed > 0 ? absl::StrCat(", ", recomputed, " layers recomputed").c_str() : "",
        model_->device == nullptr ? absl::StrCat(options_.threads, " threads").c_str()
                                  : model_->device->name().c_str(),
        options_.steps);
    const auto line = [&](const char* name, double w, double c) {
      std::printf("%-28s %9.1f ms %5.1f%% %9.1f ms CPU\n", name, w * 1e3, 100 * w / StepSeconds(),
                  c * 1e3);
    };
    line("forward", forward, cpu);
    line("loss and backward", phases_.wall("forward_backward") - forward,
         phases_.cpu("forward_backward") - cpu);
    line("gradient sums and norm", phases_.wall("reduce"), phases_.cpu("reduce"));
    line("AdamW", phases_.wall("update"), phases_.cpu("update"));
    std::printf("%-28s %9.1f ms, %.0f tokens per second, %.1f%% of the product rate\n", "step",
                StepSeconds() * 1e3, tokens() / StepSeconds(), 100 * Share());
    constexpr double kMiB = 1 << 20;
    std::printf("%-28s %.1f of %.1f MiB activations, %.1f of %.1f MiB workspace\n",
                "taken of planned", static_cast<double>(saved_.peak_bytes()) / kMiB,
                static_cast<double>(plan_.activations) / kMiB,
                static_cast<double>(scratch_.peak_bytes()) / kMiB,
                static_cast<double>(plan_.workspace) / kMiB);
    std::fflush(stdout);
  }

  v1::JobSpec spec_;
  job::MemoryPlan plan_;
  const Options& options_;
  Model* model_;
  double product_rate_, flops_per_token_, micro_batches_ = 1;
  kernels::Arena scratch_, saved_;
  LayerContext layer_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<TrainStep> step_;
  std::mt19937 engine_{1};
  bench::StepPhases phases_;
};

/// The job at a context; as few layers recomputed as fit. False: it does not fit at all.
bool FitContext(int64_t context, bool on_device, int64_t available, v1::TrainingJob* job) {
  v1::TrainingSpec& training = *job->mutable_spec()->mutable_training();
  v1::DataSpec& data = *job->mutable_spec()->mutable_data();
  const int64_t tokens = training.global_batch_size() * data.seq_len();
  data.set_seq_len(context);
  training.set_global_batch_size(std::max<int64_t>(1, tokens / context));
  training.set_micro_batch_size(
      std::clamp<int64_t>(kMicroBatchTokens / context, 1, training.global_batch_size()));
  // The model is there already.
  const auto needed = [&] {
    const job::MemoryPlan plan = job::PlanMemory(*job, on_device);
    return std::pair(plan.activations + plan.workspace, plan.taken(on_device));
  };
  training.clear_recompute();
  if (available == 0) return true;
  const auto [taken, total] = needed();
  training.set_recompute(taken > available);
  if (!training.recompute()) return true;
  training.set_recompute_layers(
      job::FewestRecomputedLayers(*job, on_device, available / 100 * 98 + total - taken));
  return needed().first <= available;
}

absl::Status RunContexts(const v1::TrainingJob& job, const Options& options) {
  kernels::Counters counters;
  kernels::Context ctx;
  kernels::Arena scratch, saved;
  ctx.num_threads = options.threads;
  ctx.counters = &counters;
  ctx.scratch = &scratch;
  Model model;
  ELA_RETURN_IF_ERROR(model.Build(job.spec(), &ctx));
  const double rate = MeasureProductRate(MakeLayerContext(ctx, &saved, model.dtype),
                                         ctx.device == nullptr ? 0 : 8192);
  if (!options.json) std::printf("products run at %.4g TFLOP/s\n", rate * 1e-12);
  if (options.contexts.empty()) return Bench(job, options, &model, ctx, rate).Run();
  const bool on_device = model.device != nullptr;
  for (const int64_t context : options.contexts) {
    v1::TrainingJob at = job;
    const int64_t available = model.device == nullptr
                                  ? AvailableMemory()
                                  : static_cast<int64_t>(model.device->free_bytes());
    if (FitContext(context, on_device, available, &at)) {
      ELA_RETURN_IF_ERROR(Bench(at, options, &model, ctx, rate).Run());
      continue;
    }
    const job::MemoryPlan plan = job::PlanMemory(at, on_device);
    std::fprintf(stderr,
                 "context %lld needs %.1f GiB for activations and workspace: %.1f are free\n",
                 static_cast<long long>(context),
                 static_cast<double>(plan.activations + plan.workspace) * 0x1p-30,
                 static_cast<double>(available) * 0x1p-30);
  }
  return absl::OkStatus();
}

absl::Status Main(const Options& options) {
  ELA_ASSIGN_OR_RETURN(v1::TrainingJob job, job::LoadJobFile(options.job_file));
  std::vector<std::string> overrides = {"parallelism.data=1", "parallelism.sequence=1",
                                        "parallelism.expert=1"};
  overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
  for (const std::string& assignment : overrides) {
    ELA_RETURN_IF_ERROR(job::ApplySet(assignment, &job));
  }
  return RunContexts(job::Resolve(job, ""), options);
}

int Usage() {
  std::fprintf(stderr, "train_step_bench: see the top of tests/bench/train_step_bench.cc\n");
  return 64;
}

bool ParseContexts(const char* text, std::vector<int64_t>* contexts) {
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int64_t context = 0;
    if (!absl::SimpleAtoi(part, &context) || context < 1) return false;
    contexts->push_back(context);
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--json") {
      options.json = true;
      continue;
    }
    if (i + 1 == argc) return Usage();
    const char* value = argv[++i];
    if (option == "--job") {
      options.job_file = value;
    } else if (option == "--set") {
      options.overrides.push_back(value);
    } else if (option == "--threads") {
      options.threads = std::max(1, std::atoi(value));
    } else if (option == "--steps") {
      options.steps = std::max(1, std::atoi(value));
    } else if (option != "--contexts" || !ParseContexts(value, &options.contexts)) {
      return Usage();
    }
  }
  const absl::Status status = Main(options);
  if (!status.ok()) std::fprintf(stderr, "train_step_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace ela::trainer

int main(int argc, char** argv) { return ela::trainer::Main(argc, argv); }
