// Generation with a job's model and random parameters: tokens a second of the prompt's one forward
// pass, and of decoding, greedily, at several numbers of samples.
//
//   decode_bench [--job FILE] [--set KEY=VALUE]... [--precision fp32|bf16] [--threads N]
//                [--prompt N] [--tokens N] [--samples B,...]
//
// On a card with resources.device cuda (or auto); there each step replays a graph, and beside it
// stand the same steps launched one kernel at a time, whose tokens must be the same.
//
//   prompt tokens/s  median of 5 runs after one of warm-up, caches and the first logits included
//   tokens/s         samples / median seconds of a step, of --tokens after 8 of warm-up: ids to the
//                    device, the step, the likeliest tokens back
//   weights          bytes of the parameters that a token's products use, once a step, over that
//                    time (with experts and several samples more of them are read)
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "tests/bench/drawn_values.h"
#include "tests/bench/step_phases.h"
#include "trainer/inference/decoding.h"
#include "trainer/loop/choose_device.h"
#include "trainer/loop/machine.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

struct Options {
  std::string job_file = "deploy/jobs/demo.yaml", precision = "fp32";
  std::vector<std::string> overrides;
  std::vector<int64_t> samples = {1, 64};
  int64_t prompt = 1024, tokens = 64;
  int threads = ChooseThreads(1);
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Bench {
 public:
  Bench(LoadedModel* model, const Options& options) : model_(model), options_(options) {
    for (int64_t i = 0; i < options.prompt; ++i) {
      prompt_.push_back(static_cast<int32_t>((i * 7919) % model->spec().vocab_size()));
    }
  }

  absl::Status Run() {
    std::vector<double> seconds;
    for (int i = -1; i < 5; ++i) {
      const double begin = Now();
      ELA_ASSIGN_OR_RETURN(const auto decoding, Start(1, true));
      decoding->Likeliest();  // waits
      if (i >= 0) seconds.push_back(Now() - begin);
    }
    std::printf("prompt of %lld tokens: %.0f tokens/s\n", static_cast<long long>(options_.prompt),
                static_cast<double>(options_.prompt) / bench::Median(seconds));
    for (const int64_t samples : options_.samples) ELA_RETURN_IF_ERROR(Decode(samples));
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::unique_ptr<Decoding>> Start(int64_t samples, bool graph) {
    const int64_t most = options_.prompt + options_.tokens + kWarmUp;
    return Decoding::Start(model_, prompt_,
                           {.samples = samples, .most_tokens = most, .graph = graph});
  }

  absl::Status Decode(int64_t samples) {
    const bool card = model_->context().ctx.device != nullptr;
    std::vector<int32_t> replayed, launched;
    ELA_ASSIGN_OR_RETURN(const double seconds, StepSeconds(samples, true, &replayed));
    Tell(samples, card ? "replayed" : "", seconds);
    if (!card) return absl::OkStatus();
    ELA_ASSIGN_OR_RETURN(const double without, StepSeconds(samples, false, &launched));
    Tell(samples, "launched", without);
    if (replayed == launched) return absl::OkStatus();
    return absl::InternalError("a replayed step gives other tokens");
  }

  absl::StatusOr<double> StepSeconds(int64_t samples, bool graph, std::vector<int32_t>* tokens) {
    ELA_ASSIGN_OR_RETURN(const auto decoding, Start(samples, graph));
    std::vector<double> seconds;
    std::vector<int32_t> next = decoding->Likeliest();
    for (int64_t i = -kWarmUp; i < options_.tokens; ++i) {
      const double begin = Now();
      ELA_RETURN_IF_ERROR(decoding->Step(next));
      next = decoding->Likeliest();
      if (i >= 0) seconds.push_back(Now() - begin);
      tokens->insert(tokens->end(), next.begin(), next.end());
    }
    return bench::Median(seconds);
  }

  void Tell(int64_t samples, const char* how, double seconds) const {
    const double bytes = static_cast<double>(job::ActiveParameterCount(model_->spec())) *
                         static_cast<double>(kernels::SizeOf(model_->context().element));
    std::printf("%4lld samples %-9s %9.1f us a step %10.0f tokens/s %8.1f GB/s of weights\n",
                static_cast<long long>(samples), how, seconds * 1e6,
                static_cast<double>(samples) / seconds, bytes / seconds * 1e-9);
    std::fflush(stdout);
  }

  static constexpr int64_t kWarmUp = 8;
  LoadedModel* model_;
  const Options& options_;
  std::vector<int32_t> prompt_;
};

absl::Status Main(const Options& options) {
  ELA_ASSIGN_OR_RETURN(v1::TrainingJob job, job::LoadJobFile(options.job_file));
  for (const std::string& assignment : options.overrides) {
    ELA_RETURN_IF_ERROR(job::ApplySet(assignment, &job));
  }
  job = job::Resolve(job, "");
  ELA_ASSIGN_OR_RETURN(const ChosenDevice chosen,
                       ChooseDevice(job.spec().resources().device(), *MakeSingleRank({})));
  kernels::CudaDevice* device = chosen.device.get();
  const bool bf16 = options.precision == "bf16";
  ELA_ASSIGN_OR_RETURN(
      const auto model,
      LoadedModel::Create(job, bench::DrawValues,
                          {.num_threads = options.threads,
                           .device = device,
                           .dtype = bf16 ? kernels::DType::kBf16 : kernels::DType::kF32}));
  std::printf("%s, %s, %s\n", options.job_file.c_str(), options.precision.c_str(),
              device == nullptr ? "CPU" : device->name().c_str());
  return Bench(model.get(), options).Run();
}

int Usage() {
  std::fprintf(stderr, "decode_bench: see the top of tests/bench/decode_bench.cc\n");
  return 64;
}

bool ParseNumbers(const char* text, std::vector<int64_t>* numbers) {
  numbers->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int64_t number = 0;
    if (!absl::SimpleAtoi(part, &number) || number < 1) return false;
    numbers->push_back(number);
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    const char* value = argv[i + 1];
    if (option == "--job") {
      options.job_file = value;
    } else if (option == "--set") {
      options.overrides.push_back(value);
    } else if (option == "--precision") {
      options.precision = value;
    } else if (option == "--threads") {
      options.threads = std::max(1, std::atoi(value));
    } else if (option == "--prompt") {
      options.prompt = std::max(1, std::atoi(value));
    } else if (option == "--tokens") {
      options.tokens = std::max(1, std::atoi(value));
    } else if (option != "--samples" || !ParseNumbers(value, &options.samples)) {
      return Usage();
    }
  }
  if (argc % 2 == 0) return Usage();
  const absl::Status status = Main(options);
  if (!status.ok()) std::fprintf(stderr, "decode_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace ela::trainer

int main(int argc, char** argv) { return ela::trainer::Main(argc, argv); }
