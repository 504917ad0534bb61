// Trainer: what a step tells the user, the metrics and the coordinator.
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "proto/job/plan.h"
#include "trainer/loop/machine.h"
#include "trainer/loop/trainer.h"

namespace ela::trainer {
namespace {

// 12345 -> "12.3k", 1234567 -> "1.23M"
std::string Short(double value) {
  if (value >= 1e6) return absl::StrFormat("%.2fM", value / 1e6);
  if (value >= 1e4) return absl::StrFormat("%.1fk", value / 1e3);
  return absl::StrFormat("%.0f", value);
}

}  // namespace

double Trainer::EtaSeconds() const {
  return smooth_seconds_ * static_cast<double>(spec().training().steps() - state_.step());
}

void Trainer::Report(const StepLoss& loss, const GradientVerdict& verdict, double lr) {
  phases_->Begin("");
  StepRecord record;
  record.step = state_.step();
  record.loss = loss.loss;
  record.aux_loss = loss.aux_loss;
  record.grad_norm = verdict.norm;
  record.lr = lr;
  record.tokens = state_.tokens();
  record.step_seconds = absl::ToDoubleSeconds(absl::Now() - step_begin_);
  record.leaks_future = leaks_;
  smooth_seconds_ = smooth_seconds_ == 0 ? record.step_seconds
                                         : 0.9 * smooth_seconds_ + 0.1 * record.step_seconds;

  const int64_t batch_tokens = spec().training().global_batch_size() * spec().data().seq_len();
  const double flops = job::ModelFlopsPerToken(spec().model(), spec().data().seq_len()) *
                       static_cast<double>(batch_tokens);
  const double mfu = product_rate_ > 0 ? flops / record.step_seconds / product_rate_ : 0;
  metrics_->OnStep(record, batch_tokens, flops, mfu);
  if (world_->statistics() != nullptr) metrics_->OnComm(world_->statistics()->Snapshot());
  if (loss.routing.experts > 1) metrics_->OnRouting(loss.routing);
  const std::vector<int64_t> slow = decoder_->TakeSlowPathChunks();
  for (size_t i = 0; i < slow.size(); ++i) metrics_->OnSlowPath(static_cast<int64_t>(i), slow[i]);
  metrics_->OnMemory(static_cast<int64_t>(saved_.peak_bytes()),
                     static_cast<int64_t>(scratch_.peak_bytes()), ResidentMemory());
  if (lead()) ReportProgress(record);
}

void Trainer::ReportMemory() {
  constexpr double kMiB = 1 << 20;
  log_->info("memory: {:.1f} MiB of {:.1f} planned for activations, {:.1f} of {:.1f} for workspace",
             static_cast<double>(saved_.peak_bytes()) / kMiB,
             static_cast<double>(plan_.activations) / kMiB,
             static_cast<double>(scratch_.peak_bytes()) / kMiB,
             static_cast<double>(plan_.workspace) / kMiB);
}

void Trainer::ReportShard() {
  metrics_->OnCheckpoint("write", checkpointer_->last_write_seconds());
  metrics_->OnCheckpointBytes(checkpointer_->last_bytes());
}

void Trainer::ReportProgress(const StepRecord& record) {
  const absl::Status written = metrics_file_->Append(ToJsonLine(record));
  if (!written.ok()) log_->error("{}", std::string(written.message()));
  if (const int64_t at = checkpointer_->committed_unix_ms(); at != reported_commit_) {
    reported_commit_ = at;
    progress_.clear_checkpoint_failing_since_step();
    progress_.clear_checkpoint_error();
    metrics_->OnCommitted(at);
    metrics_->OnCheckpoint("commit", checkpointer_->last_commit_seconds());
    log_->info("checkpoint of step {} is committed", checkpointer_->committed_step());
  }
  if (client_ != nullptr) ReportToCoordinator(record);
  const bool edge = record.step == first_step_ + 1 || record.step == spec().training().steps();
  if (edge || absl::Now() - last_print_ >= absl::Seconds(2)) PrintProgress(record);
}

void Trainer::PrintProgress(const StepRecord& record) {
  last_print_ = absl::Now();
  const double tokens =
      static_cast<double>(spec().training().global_batch_size() * spec().data().seq_len());
  log_->info("step {}/{}  loss {:.4f}{}  lr {:.2e}  grad {:.3f}  {} tok/s  eta {}", record.step,
             spec().training().steps(), record.loss, leaks_ ? " (leaks)" : "", record.lr,
             record.grad_norm, Short(tokens / smooth_seconds_),
             absl::FormatDuration(absl::Seconds(static_cast<int64_t>(EtaSeconds()))));
}

// What it keeps to itself, nobody learns before it is too late.
void Trainer::ReportLostCheckpoint(const absl::Status& why) {
  log_->error("checkpoint lost: {}", std::string(why.message()));
  if (!lead()) return;
  metrics_->OnLostCheckpoint();
  if (progress_.checkpoint_failing_since_step() == 0) {
    progress_.set_checkpoint_failing_since_step(checkpoint_step_ > 0 ? checkpoint_step_
                                                                     : state_.step());
  }
  progress_.set_checkpoint_error(std::string(why.message()));
  if (client_ != nullptr) client_->ReportStep(progress_);
}

void Trainer::ReportToCoordinator(const StepRecord& record) {
  progress_.set_step(record.step);
  progress_.set_total_steps(spec().training().steps());
  progress_.set_loss(record.loss);
  progress_.set_aux_loss(record.aux_loss);
  progress_.set_grad_norm(record.grad_norm);
  progress_.set_learning_rate(record.lr);
  progress_.set_tokens_per_second(
      static_cast<double>(spec().training().global_batch_size() * spec().data().seq_len()) /
      record.step_seconds);
  progress_.set_step_seconds(record.step_seconds);
  progress_.set_tokens(record.tokens);
  progress_.set_last_checkpoint_step(checkpointer_->committed_step());
  progress_.set_last_checkpoint_unix_ms(checkpointer_->committed_unix_ms());
  progress_.set_eval_loss(eval_loss_);
  progress_.set_eval_step(eval_step_);
  progress_.set_eta_seconds(EtaSeconds());
  progress_.set_leaks_future(leaks_);
  progress_.set_skipped_steps(state_.skipped_steps());
  client_->SetPhase("step");
  client_->ReportStep(progress_);
}

}  // namespace ela::trainer
