#include "trainer/loop/trainer.h"

#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/loop/evaluation.h"

namespace ela::trainer {

Trainer::Trainer(const v1::TrainingJob& job, TrainerOptions options, Communicator* world)
    : job_(job), options_(std::move(options)), world_(world) {}

Trainer::~Trainer() = default;

ExitReport Trainer::Run() {
  ExitReport report;
  try {
    absl::Status status = Prepare();
    if (status.ok()) status = Loop();
    if (ReportOf(status).code != kExitError) status.Update(FinishGathers());
    report = ReportOf(status);
    if (status.ok()) report.reason = absl::StrCat("done: ", state_.step(), " steps");
  } catch (const std::bad_alloc&) {
    report = {kExitError, v1::OUTCOME_OUT_OF_MEMORY,
              "out of memory: lower training.micro_batch_size or set training.recompute: true"};
  }
  if (log_ != nullptr) {
    const bool wanted = report.code == kExitDone || report.code == kExitStopped;
    log_->log(wanted ? spdlog::level::info : spdlog::level::err, "exit {}: {}", report.code,
              report.reason);
  } else if (lead()) {
    std::fprintf(stderr, "ela-trainer: %s\n", report.reason.c_str());
  }
  if (client_ != nullptr) client_->Goodbye(report.outcome, report.reason);
  if (!folder_.path.empty()) {
    WriteExitRecords(folder_.path, folder_.attempt_dir, world_->rank(), report);
  }
  return report;
}

// An end that all ranks know of: nobody leaves while others still gather the last update.
absl::Status Trainer::FinishGathers() {
  if (optimizer_ == nullptr) return absl::OkStatus();
  const absl::Status gathered = optimizer_->AwaitParameters();
  if (options_.device != nullptr) options_.device->Synchronize();
  return gathered;
}

absl::Status Trainer::Loop() {
  first_step_ = state_.step();
  if (first_step_ >= spec().training().steps()) {
    log_->info("nothing to do: step {} of {} is done", first_step_, spec().training().steps());
    return absl::OkStatus();
  }
  if (leaks_) {
    log_->warn(
        "the memory lobe is bidirectional: the model sees its targets, and every loss leaks");
  }
  while (state_.step() < spec().training().steps()) ELA_RETURN_IF_ERROR(Step());
  if (client_ != nullptr) client_->SetPhase("checkpoint");
  ELA_RETURN_IF_ERROR(FinalCheckpoint());
  phases_->Finish();
  ReportMemory();
  return absl::OkStatus();
}

uint32_t Trainer::MyFlags() {
  uint32_t flags = 0;
  if (options_.stop_requested()) flags |= StepFlags::kStop;
  if (checkpointer_->shard_written()) flags |= StepFlags::kShardWritten;
  if (client_ != nullptr && client_->checkpoint_and_exit()) flags |= StepFlags::kStop;
  if (superseded_ || (client_ != nullptr && client_->superseded())) flags |= StepFlags::kSuperseded;
  return flags;
}

absl::Status Trainer::Step() {
  const int64_t step = state_.step() + 1;
  step_begin_ = absl::Now();
  if (fault_.Hits(Fault::Kind::kKill, world_->rank(), step)) raise(SIGKILL);
  phases_->Begin("data");
  StepBatch batch;
  const absl::Status filled = stream_->Fill(step, state_.consumed_samples(), &batch);

  phases_->Begin("forward_backward");
  // Two sizes depend on the data: rows by expert. What overflowed last time fits from now on.
  saved_.Reserve(saved_.peak_bytes(), layer_.ctx.backend);
  scratch_.Reserve(scratch_.peak_bytes(), layer_.ctx.backend);
  ELA_ASSIGN_OR_RETURN(const StepLoss loss, train_step_->Run(layer_, batch, filled, MyFlags()));
  if (fault_.Hits(Fault::Kind::kNan, world_->rank(), step)) {
    kernels::Fill(layer_.ctx, store_->flat_grads(ParameterClass::kDense).Rows(0, 1),
                  std::numeric_limits<double>::quiet_NaN());
    fault_.kind = Fault::Kind::kNone;  // once, also if the step comes again
  }

  phases_->Begin("reduce");
  ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                       optimizer_->ReduceGradients(layer_.ctx, loss.locally_finite));
  if (!verdict.finite || !std::isfinite(loss.loss)) {
    ELA_RETURN_IF_ERROR(OnNotFinite(loss, verdict));
  } else {
    ELA_RETURN_IF_ERROR(Apply(loss, verdict));
  }
  ELA_RETURN_IF_ERROR(EvaluateNow());
  return AfterStep(loss.flags);
}

absl::Status Trainer::Apply(const StepLoss& loss, const GradientVerdict& verdict) {
  const double lr = LearningRate(schedule_, state_.step() + 1);
  const bool spike = spikes_.IsSpike(loss.loss);
  if (spike) {
    log_->warn("step {}: loss {:.4f}{} is a spike, no update", state_.step() + 1, loss.loss,
               leaks_ ? " (leaks)" : "");
  } else {
    phases_->Begin("update");
    ELA_RETURN_IF_ERROR(optimizer_->Update(layer_.ctx, verdict, lr, state_.optimizer_steps() + 1));
  }
  spikes_.Add(loss.loss);
  Advance(loss, /*updated=*/!spike);
  Report(loss, verdict, lr);
  return absl::OkStatus();
}

void Trainer::Advance(const StepLoss& loss, bool updated) {
  state_.set_step(state_.step() + 1);
  state_.set_consumed_samples(state_.consumed_samples() + spec().training().global_batch_size());
  state_.set_tokens(state_.tokens() + loss.valid_targets);
  if (updated) {
    state_.set_optimizer_steps(state_.optimizer_steps() + 1);
  } else {
    state_.set_skipped_steps(state_.skipped_steps() + 1);
    metrics_->OnSkippedStep();
  }
  state_.set_elapsed_seconds(state_.elapsed_seconds() +
                             absl::ToDoubleSeconds(absl::Now() - step_begin_));
}

absl::Status Trainer::OnNotFinite(const StepLoss& loss, const GradientVerdict& verdict) {
  const int64_t step = state_.step() + 1;
  const std::string what =
      absl::StrCat("step ", step, ": the loss or a gradient is not finite (loss ", loss.loss, ")");
  switch (spec().training().on_nan()) {
    case v1::ON_NAN_SKIP:
      log_->warn("{}: no update (training.on_nan: skip)", what);
      Advance(loss, /*updated=*/false);
      Report(loss, verdict, LearningRate(schedule_, state_.step()));
      return absl::OkStatus();
    case v1::ON_NAN_REWIND:
      log_->warn("{}: back to the last checkpoint (training.on_nan: rewind)", what);
      rewinds_ = step > rewind_step_ ? 1 : rewinds_ + 1;
      rewind_step_ = std::max(rewind_step_, step);
      if (rewinds_ <= 3) return Rewind();
      return absl::InvalidArgumentError(
          absl::StrCat(what,
                       " again after three rewinds without getting further: lower "
                       "optimizer.lr or look at the data"));
    default:
      if (state_.step() > 0) ELA_RETURN_IF_ERROR(FinalCheckpoint());
      return absl::InvalidArgumentError(
          absl::StrCat(what,
                       "; training.on_nan is stop. The last good state is kept: lower "
                       "optimizer.lr, or set on_nan: skip or rewind"));
  }
}

// Goes on from the last checkpoint with the data after what broke it.
absl::Status Trainer::Rewind() {
  const int64_t consumed = state_.consumed_samples() + spec().training().global_batch_size();
  const int64_t skipped = state_.skipped_steps() + (state_.step() + 1);
  ELA_RETURN_IF_ERROR(FinishEarlierCheckpoint());
  ELA_ASSIGN_OR_RETURN(const bool loaded, LoadNewest());
  if (!loaded) ELA_RETURN_IF_ERROR(StartFresh());
  spikes_.window.assign(state_.spike_window().begin(), state_.spike_window().end());
  state_.set_consumed_samples(consumed);
  state_.set_skipped_steps(skipped - state_.step());
  metrics_->OnSkippedStep();
  return OpenMetricsFile();
}

absl::Status Trainer::EvaluateNow() {
  const int64_t every = spec().training().eval_every();
  if (eval_stream_ == nullptr || every == 0 || state_.step() % every != 0 || state_.step() == 0) {
    return absl::OkStatus();
  }
  phases_->Begin("eval");
  if (client_ != nullptr) client_->SetPhase("eval");
  const int64_t batch = spec().training().global_batch_size();
  const int64_t whole = std::max<int64_t>(1, eval_loader_->samples_per_epoch() / batch);
  ELA_ASSIGN_OR_RETURN(const EvalResult result,
                       Evaluate(layer_, decoder_.get(), *mesh_, *eval_stream_,
                                std::min<int64_t>(spec().training().eval_batches(), whole), batch));
  eval_loss_ = result.loss;
  eval_step_ = state_.step();
  const EvalRecord record = {state_.step(), result.loss, result.tokens, leaks_};
  metrics_->OnEval(record);
  log_->info("step {}: validation loss {:.4f} over {} tokens{}", state_.step(), result.loss,
             result.tokens, leaks_ ? " (leaks the future)" : "");
  if (lead()) {
    // As with a step's line: a full disk does not end the training.
    const absl::Status written = metrics_file_->Append(ToJsonLine(record));
    if (!written.ok()) log_->error("{}", std::string(written.message()));
  }
  return absl::OkStatus();
}

absl::Status Trainer::AfterStep(const StepFlags& flags) {
  if ((flags.any & StepFlags::kSuperseded) != 0) {
    return absl::AbortedError("a newer attempt of this job exists: nothing more is written");
  }
  if ((flags.all & StepFlags::kShardWritten) != 0) {
    const absl::Status collected = checkpointer_->Collect();
    if (!collected.ok()) ReportLostCheckpoint(collected);
    ReportShard();
  }
  if (const absl::Status lost = checkpointer_->TakeCommitError(); absl::IsAborted(lost)) {
    superseded_ = true;  // told to all with the next step
  } else if (!lost.ok()) {
    ReportLostCheckpoint(lost);
  }
  if (const absl::Status kept = checkpointer_->TakeRetentionError(); !kept.ok()) {
    log_->warn("older checkpoints stay: {}", std::string(kept.message()));
  }
  if ((flags.any & StepFlags::kStop) != 0) {
    if (client_ != nullptr) client_->SetPhase("stopping");
    ELA_RETURN_IF_ERROR(FinalCheckpoint());
    if (state_.step() >= spec().training().steps()) return absl::OkStatus();
    return absl::CancelledError(absl::StrCat("stopped on request; the checkpoint of step ",
                                             state_.step(), " is committed"));
  }
  const int64_t every = spec().checkpoint().every_steps();
  const bool due = every > 0 && state_.step() % every == 0 && state_.step() != checkpoint_step_;
  if (due && state_.step() < spec().training().steps()) return StartCheckpoint();
  return absl::OkStatus();
}

}  // namespace ela::trainer
