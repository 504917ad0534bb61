// One training step of a job's model on one rank, phase by phase: what a step of the trainer does,
// with random tokens in place of the job's data.
//
//   train_step_bench [--job FILE] [--set KEY=VALUE]... [--threads N] [--steps N] [--json]
//
// --json prints one line, for torch_bench.py, which runs the same model in PyTorch beside it.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "proto/job/job_file.h"
#include "proto/status_macros.h"
#include "trainer/loop/machine.h"
#include "trainer/loop/train_step.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

struct Options {
  std::string job_file = "deploy/jobs/demo.yaml";
  std::vector<std::string> overrides;
  int threads = ChooseThreads(1);
  int steps = 20;
  bool json = false;
};

double Now(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

/// Seconds of one phase, a sample a step.
struct Phase {
  std::vector<double> wall, cpu;

  template <class Work>
  auto Time(const Work& work) {
    const double wall_start = Now(CLOCK_MONOTONIC), cpu_start = Now(CLOCK_PROCESS_CPUTIME_ID);
    auto result = work();
    cpu.push_back(Now(CLOCK_PROCESS_CPUTIME_ID) - cpu_start);
    wall.push_back(Now(CLOCK_MONOTONIC) - wall_start);
    return result;
  }
};

class Bench {
 public:
  Bench(const v1::JobSpec& spec, const Options& options)
      : spec_(spec), options_(options), world_(MakeSingleRank({})) {}

  absl::Status Run() {
    ELA_RETURN_IF_ERROR(Build());
    for (int i = -2; i < options_.steps; ++i) {
      ELA_RETURN_IF_ERROR(Step(i + 3));
      if (i < 0) forward_ = both_ = reduce_ = update_ = Phase();  // warm-up
    }
    options_.json ? PrintJson() : PrintTable();
    return absl::OkStatus();
  }

 private:
  absl::Status Build() {
    ELA_ASSIGN_OR_RETURN(mesh_, Mesh::Create(world_.get(), {}, spec_.model().moe().num_experts()));
    StoreOptions options;
    if (spec_.training().precision() == v1::PRECISION_BF16) options.dtype = kernels::DType::kBf16;
    store_ = std::make_unique<ParameterStore>(job::Parameters(spec_.model()), *mesh_, options);
    kernels::Context ctx;
    ctx.num_threads = options_.threads;
    ctx.scratch = &scratch_;
    ctx.counters = &counters_;
    layer_ = MakeLayerContext(ctx, &saved_, options.dtype);
    const DecoderOptions decoder = {.recompute = spec_.training().recompute(), .causal = true};
    decoder_ = std::make_unique<Decoder>(spec_.model(), store_.get(), mesh_.get(), decoder);
    step_ = std::make_unique<TrainStep>(spec_, decoder_.get(), store_.get(), mesh_.get());
    optimizer_ = std::make_unique<Zero1Optimizer>(mesh_.get(), store_.get(), OptimizerConfig());
    return optimizer_->Fill(layer_.ctx, InitialSource(spec_.model().num_layers(), 1));
  }

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
    return out;
  }

  absl::Status Step(int64_t number) {
    const StepBatch batch = RandomBatch();
    scratch_.Reserve(scratch_.peak_bytes(), layer_.ctx.backend);
    saved_.Reserve(saved_.peak_bytes(), layer_.ctx.backend);
    // A forward pass more than the step's own: to tell it from the backward pass.
    for (const TokenRows& rows : batch.micro) {
      RoutingStatistics routing(spec_.model().num_layers(), spec_.model().moe().num_experts());
      ELA_RETURN_IF_ERROR(forward_.Time([&] { return decoder_->Forward(layer_, rows, &routing); }));
      decoder_->Forget(layer_);
    }
    ELA_ASSIGN_OR_RETURN(const StepLoss loss, both_.Time([&] {
      return step_->Run(layer_, batch, absl::OkStatus(), 0);
    }));
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict, reduce_.Time([&] {
      return optimizer_->ReduceGradients(layer_.ctx, loss.locally_finite);
    }));
    return update_.Time([&] { return optimizer_->Update(layer_.ctx, verdict, 1e-3, number); });
  }

  double tokens() const {
    return static_cast<double>(spec_.training().global_batch_size() * spec_.data().seq_len());
  }

  void PrintJson() const {
    std::printf("{\"tokens\": %.0f, \"wall\": %.6f, \"cpu\": %.6f}\n", tokens(),
                Median(both_.wall) + Median(reduce_.wall) + Median(update_.wall),
                Median(both_.cpu) + Median(reduce_.cpu) + Median(update_.cpu));
  }

  void PrintTable() const {
    const double micro = static_cast<double>(forward_.wall.size() / both_.wall.size());
    const double forward = micro * Median(forward_.wall), cpu = micro * Median(forward_.cpu);
    const double wall = Median(both_.wall) + Median(reduce_.wall) + Median(update_.wall);
    std::printf("%s, %.0f tokens a step, %d threads; medians of %d steps\n",
                options_.job_file.c_str(), tokens(), options_.threads, options_.steps);
    const auto line = [&](const char* name, double w, double c) {
      std::printf("%-28s %9.1f ms %5.1f%% %9.1f ms CPU\n", name, w * 1e3, 100 * w / wall, c * 1e3);
    };
    line("forward", forward, cpu);
    line("loss and backward", Median(both_.wall) - forward, Median(both_.cpu) - cpu);
    line("gradient sums and norm", Median(reduce_.wall), Median(reduce_.cpu));
    line("AdamW", Median(update_.wall), Median(update_.cpu));
    std::printf("%-28s %9.1f ms, %.0f tokens per second\n", "step", wall * 1e3, tokens() / wall);
  }

  v1::JobSpec spec_;
  Options options_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<ParameterStore> store_;
  kernels::Arena scratch_, saved_;
  kernels::Counters counters_;
  LayerContext layer_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<TrainStep> step_;
  std::unique_ptr<Zero1Optimizer> optimizer_;
  std::mt19937 engine_{1};
  Phase forward_, both_, reduce_, update_;
};

absl::Status Main(const Options& options) {
  ELA_ASSIGN_OR_RETURN(v1::TrainingJob job, job::LoadJobFile(options.job_file));
  std::vector<std::string> overrides = {"parallelism.data=1", "parallelism.sequence=1",
                                        "parallelism.expert=1"};
  overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
  for (const std::string& assignment : overrides) {
    ELA_RETURN_IF_ERROR(job::ApplySet(assignment, &job));
  }
  job = job::Resolve(job, "");
  return Bench(job.spec(), options).Run();
}

int Usage() {
  std::fprintf(stderr,
               "train_step_bench [--job FILE] [--set KEY=VALUE]... [--threads N] [--steps N] "
               "[--json]\n");
  return 64;
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
    } else {
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
