// One rank's run of a job: prepare, resume, steps with their evaluations and checkpoints, end.
//
//   step = batch -> forward, backward -> sum of gradients, verdict -> update (or skip, stop,
//   rewind)
//        -> report -> evaluation -> checkpoint
//
// All ranks take every decision from numbers they share, so they always make the same calls: a NaN
// on one rank, a signal to one rank, a damaged shard that one rank meets are known to all in the
// same step.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "data/loader.h"
#include "ela/v1/job.pb.h"
#include "ela/v1/manifest.pb.h"
#include "proto/job/plan.h"
#include "trainer/coordinator_client/coordinator_client.h"
#include "trainer/loop/checkpointer.h"
#include "trainer/loop/exit_record.h"
#include "trainer/loop/fault.h"
#include "trainer/loop/metrics.h"
#include "trainer/loop/phase_clock.h"
#include "trainer/loop/run_folder.h"
#include "trainer/loop/train_step.h"
#include "trainer/optim/lr_schedule.h"
#include "trainer/optim/spike_guard.h"
#include "trainer/optim/zero1_optimizer.h"

namespace spdlog {
class logger;
}

namespace ela::trainer {

struct TrainerOptions {
  std::string run_dir;
  std::string coordinator;  // HOST:PORT; empty: none
  std::string job_id;
  int64_t attempt = 0;  // 0: no coordinator
  std::string token_file;
  std::string metrics_address = "127.0.0.1:0";  // empty: not served
  kernels::CudaDevice* device = nullptr;        // null: the CPU; must outlive the trainer
  std::string device_note;                      // as ChosenDevice's
  int num_threads = 1;
  int local_ranks = 1;
  bool progress = true;  // rank 0's progress lines on stderr
  std::string fault;     // ELA_FAULT
  std::function<bool()> stop_requested = [] { return false; };
};

class Trainer {
 public:
  /// `job` is resolved and valid; `world` must outlive the trainer.
  Trainer(const v1::TrainingJob& job, TrainerOptions options, Communicator* world);
  ~Trainer();

  /// Collective. Writes the exit records. With code kExitError the other ranks may not know: the
  /// caller ends the world with Abort.
  ExitReport Run();

 private:
  // trainer_setup.cc
  absl::Status Prepare();
  absl::Status PrepareFolder();
  absl::Status CheckMemory();
  absl::StatusOr<int64_t> RanksOnCard() const;
  absl::StatusOr<int64_t> FewestRecomputedLayers(int64_t available) const;
  absl::Status OpenData();
  absl::Status CheckSources(const std::vector<data::Source>& sources);
  absl::Status BuildModel();
  absl::Status MeetCoordinator();
  absl::Status CheckResumable(const v1::StepManifest& manifest);

  // trainer_state.cc
  absl::Status Resume();
  absl::Status OpenMetricsFile();  // collective
  absl::Status StartFresh();
  absl::StatusOr<bool> LoadNewest();
  absl::Status LoadStep(const v1::StepManifest& manifest);
  v1::StepManifest ManifestHeader() const;
  absl::Status StartCheckpoint();
  absl::Status FinalCheckpoint();
  absl::Status FinishEarlierCheckpoint();
  absl::Status SaveNow();
  absl::StatusOr<bool> TryAgain();

  // trainer.cc
  absl::Status Loop();
  absl::Status FinishGathers();
  absl::Status Step();
  absl::Status Apply(const StepLoss& loss, const GradientVerdict& verdict);
  absl::Status OnNotFinite(const StepLoss& loss, const GradientVerdict& verdict);
  absl::Status Rewind();
  absl::Status AfterStep(const StepFlags& flags);
  absl::Status EvaluateNow();
  void Advance(const StepLoss& loss, bool updated);
  uint32_t MyFlags();

  // trainer_report.cc
  void Report(const StepLoss& loss, const GradientVerdict& verdict, double lr);
  void ReportMemory();  // at the end of a run
  void ReportShard();   // the one that was written last
  void ReportProgress(const StepRecord& record);
  void ReportToCoordinator(const StepRecord& record);
  void ReportLostCheckpoint(const absl::Status& why);
  void PrintProgress(const StepRecord& record);
  double EtaSeconds() const;

  bool lead() const { return world_->rank() == 0; }
  const v1::JobSpec& spec() const { return job_.spec(); }

  v1::TrainingJob job_;
  TrainerOptions options_;
  Communicator* world_;
  RunFolder folder_;
  std::shared_ptr<spdlog::logger> log_;
  Fault fault_;
  bool leaks_ = false;  // a bidirectional lobe under next_token

  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<data::Loader> loader_, eval_loader_;
  std::unique_ptr<BatchStream> stream_, eval_stream_;
  std::string tokenizer_hash_;

  kernels::Arena scratch_, saved_;
  kernels::Counters counters_;
  LayerContext layer_;
  job::MemoryPlan plan_;
  int64_t recompute_layers_ = 0;
  std::unique_ptr<ParameterStore> store_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Zero1Optimizer> optimizer_;
  std::unique_ptr<TrainStep> train_step_;
  LrSchedule schedule_;
  SpikeGuard spikes_;
  v1::TrainerState state_;
  int rewinds_ = 0;
  int64_t rewind_step_ = 0;  // the furthest step that was not finite

  std::unique_ptr<Checkpointer> checkpointer_;
  int64_t checkpoint_step_ = 0;  // of the newest that was started or loaded
  bool superseded_ = false;

  std::unique_ptr<MetricsFile> metrics_file_;
  std::unique_ptr<TrainerMetrics> metrics_;
  std::string metrics_at_;
  std::unique_ptr<CoordinatorClient> client_;
  v1::Progress progress_;    // rank 0: what was reported last
  double product_rate_ = 0;  // FLOP/s of all ranks
  std::unique_ptr<PhaseClock> phases_;
  absl::Time step_begin_, last_print_;
  double smooth_seconds_ = 0;  // moving average of a step's time
  int64_t first_step_ = 0, reported_commit_ = 0;
  double eval_loss_ = 0;
  int64_t eval_step_ = 0;
};

}  // namespace ela::trainer
