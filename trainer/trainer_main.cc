// ela-trainer: one rank of a training job. Start it under mpirun (or alone, for a job of one rank);
// with a coordinator's address rank 0 reports to it.

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/job/job_file.h"
#include "proto/job/writer.h"
#include "proto/program/command_line.h"
#include "proto/status_macros.h"
#include "trainer/loop/choose_device.h"
#include "trainer/loop/machine.h"
#include "trainer/loop/stop_signal.h"
#include "trainer/loop/trainer.h"

namespace ela::trainer {
namespace {

struct Options {
  std::string job_file;
  std::vector<std::string> overrides;
  std::string output = "yaml";
  bool validate = false;
  TrainerOptions trainer;
};

int Complain(const std::string& message, int code) {
  if (SpeaksForAll()) std::fprintf(stderr, "ela-trainer: %s\n", message.c_str());
  return code;
}

absl::StatusOr<v1::TrainingJob> ReadJob(const Options& options) {
  ELA_ASSIGN_OR_RETURN(v1::TrainingJob job, job::LoadJobFile(options.job_file));
  for (const std::string& assignment : options.overrides) {
    ELA_RETURN_IF_ERROR(job::ApplySet(assignment, &job));
  }
  std::error_code error;
  job = job::Resolve(job, std::filesystem::current_path(error).string());
  const std::vector<std::string> problems = job::Validate(job);
  if (problems.empty()) return job;
  std::string all;
  for (const std::string& problem : problems) {
    absl::StrAppend(&all, all.empty() ? "" : "\nela-trainer: ", options.job_file, ": ", problem);
  }
  return absl::InvalidArgumentError(all);
}

void PrintPlan(const v1::TrainingJob& job, const std::string& format) {
  const nlohmann::ordered_json plan = job::PlanToJson(job);
  std::fputs((format == "json" ? job::JsonText(plan) : job::JsonToYaml(plan)).c_str(), stdout);
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld(const v1::JobSpec& spec) {
  CommunicatorOptions options;
  options.expected_world =
      static_cast<int>(spec.parallelism().data() * spec.parallelism().sequence());
  options.statistics = std::make_shared<CommStatistics>();
  options.timeout_seconds = CommTimeoutSeconds(spec.resources().device());
  const bool alone = LaunchedRank().empty();
  return MakeCommunicator(alone ? CommunicatorKind::kLocal : CommunicatorKind::kMpi, options);
}

// Exit records for an attempt that fails before it can train: the coordinator reads them.
int LeaveEarly(const Options& options, int rank, const absl::Status& status) {
  const ExitReport report = ReportOf(status);
  if (const auto folder = RunFolder::Create(options.trainer.run_dir, options.trainer.attempt, rank);
      folder.ok()) {
    WriteExitRecords(folder->path, folder->attempt_dir, rank, report);
  }
  return Complain(report.reason, report.code);
}

int Train(Options options) {
  const StopSignal stop;  // before MPI and every other thread
  const std::string launched = LaunchedRank();
  const int early_rank = launched.empty() ? 0 : std::atoi(launched.c_str());
  const auto job = ReadJob(options);
  if (!job.ok()) return LeaveEarly(options, early_rank, job.status());
  std::unique_ptr<kernels::CudaDevice> device;  // outlives the world
  auto world = MakeWorld(job->spec());
  if (!world.ok()) return LeaveEarly(options, early_rank, world.status());
  auto chosen = ChooseDevice(job->spec().resources().device(), **world);
  if (!chosen.ok()) return LeaveEarly(options, (*world)->rank(), chosen.status());
  device = std::move(chosen->device);
  options.trainer.device_note = std::move(chosen->note);
  world = WorldOf(*std::move(world), device.get(),
                  CommTimeoutSeconds(job->spec().resources().device()));
  if (!world.ok()) return LeaveEarly(options, early_rank, world.status());
  options.trainer.device = device.get();
  const auto local_ranks = LocalRanks(**world);
  if (!local_ranks.ok()) return LeaveEarly(options, (*world)->rank(), local_ranks.status());
  options.trainer.local_ranks = *local_ranks;
  options.trainer.num_threads = ChooseThreads(*local_ranks);
  options.trainer.stop_requested = [&stop] { return stop.requested(); };
  ExitReport report;
  {
    Trainer trainer(*job, options.trainer, world->get());
    report = trainer.Run();
  }
  // An error that the other ranks may not know: they must not wait for this one.
  if (report.code == kExitError) (*world)->Abort(report.code);
  return report.code;
}

void AddOptions(CLI::App* app, Options* options) {
  TrainerOptions& trainer = options->trainer;
  app->add_option("--job", options->job_file, "Job file (YAML or JSON)")->required();
  app->add_option("--set", options->overrides, "Set one key, such as model.num_layers=6")
      ->allow_extra_args(false);
  app->add_option("--run-dir", trainer.run_dir,
                  "Folder of metrics, logs, checkpoints and exit records; resumes what it holds");
  app->add_flag("--validate", options->validate,
                "Print the resolved job, its parameters and bytes per rank; start nothing");
  app->add_option("-o,--output", options->output, "Of --validate: yaml or json")
      ->check(CLI::IsMember({"yaml", "json"}))
      ->capture_default_str();
  app->add_option("--metrics-address", trainer.metrics_address,
                  "HOST:PORT of /metrics; port 0: any; empty: none")
      ->capture_default_str();
  app->add_option("--coordinator", trainer.coordinator, "HOST:PORT to report to; empty: none");
  app->add_option("--job-id", trainer.job_id, "The job's id there");
  app->add_option("--attempt", trainer.attempt, "Number of this attempt, from 1");
  app->add_option("--token-file", trainer.token_file, "The attempt's token");
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("One rank of a training job: mpirun -n 2 ela-trainer --job job.yaml --run-dir run",
               "ela-trainer");
  AddOptions(&app, &options);
  if (const auto exit = ParseCommandLine(&app, "ela-trainer", argc, argv, SpeaksForAll())) {
    return *exit;
  }
  if (options.validate) {
    const auto job = ReadJob(options);
    if (!job.ok()) return Complain(std::string(job.status().message()), 2);
    PrintPlan(*job, options.output);
    return 0;
  }
  if (options.trainer.run_dir.empty()) return Complain("--run-dir is needed", 2);
  if (const char* fault = std::getenv("ELA_FAULT"); fault != nullptr) options.trainer.fault = fault;
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // what went wrong is in the status of a call
  signal(SIGPIPE, SIG_IGN);
  return Train(std::move(options));
}

}  // namespace
}  // namespace ela::trainer

int main(int argc, char** argv) { return ela::trainer::Main(argc, argv); }
