// Trainer: where the state comes from and goes to: fresh weights, checkpoints.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/job/job_file.h"
#include "proto/program/version.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"
#include "trainer/loop/init_from.h"
#include "trainer/loop/trainer.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {
namespace {

std::string CheckpointPath(const v1::JobSpec& spec, const RunFolder& folder) {
  return spec.checkpoint().path().empty() ? folder.path + "/checkpoints" : spec.checkpoint().path();
}

constexpr absl::Duration kLongestWait = absl::Seconds(10);

// What somebody can put right while the trainer waits.
bool MayPass(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ||
         absl::IsFailedPrecondition(status) || absl::IsPermissionDenied(status) ||
         absl::IsNotFound(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

absl::Status Trainer::Resume() {
  absl::Status connected;
  if (lead() && !options_.coordinator.empty()) {
    auto client =
        CoordinatorClient::Connect(options_.coordinator, options_.job_id,
                                   static_cast<int32_t>(options_.attempt), options_.token_file);
    connected = client.status();
    if (client.ok()) client_ = *std::move(client);
  }
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, connected));

  CheckpointerOptions options;
  options.path = CheckpointPath(spec(), folder_);
  options.attempt = options_.attempt;
  options.keep_last = spec().checkpoint().keep_last();
  options.keep_every = spec().checkpoint().keep_every();
  if (client_ != nullptr) {
    options.gate = [this](int64_t step, int64_t bytes, bool committed) {
      const absl::Status status = client_->CommitCheckpoint(step, bytes, committed);
      return absl::IsFailedPrecondition(status) ? absl::AbortedError(status.message()) : status;
    };
  }
  ELA_ASSIGN_OR_RETURN(checkpointer_, Checkpointer::Open(world_, std::move(options)));
  ELA_ASSIGN_OR_RETURN(const bool loaded, LoadNewest());
  if (!loaded) ELA_RETURN_IF_ERROR(StartFresh());
  spikes_.window.assign(state_.spike_window().begin(), state_.spike_window().end());
  return OpenMetricsFile();
}

// Without the lines after the current step.
absl::Status Trainer::OpenMetricsFile() {
  absl::Status opened;
  if (lead()) {
    auto file = MetricsFile::Open(folder_.path + "/metrics.jsonl", state_.step());
    opened = file.status();
    if (file.ok()) metrics_file_ = *std::move(file);
  }
  return AgreeOk(*world_, opened);
}

absl::Status Trainer::StartFresh() {
  state_ = v1::TrainerState();
  state_.set_data_fingerprint(loader_->fingerprint());
  state_.set_tokenizer_hash(tokenizer_hash_);
  const std::string& from = spec().training().init_from();
  const int64_t layers = spec().model().num_layers();
  const auto seed = static_cast<uint64_t>(spec().training().seed());
  if (from.empty()) {
    log_->info("fresh weights, seed {}", seed);
    if (spec().training().train_only() == v1::TRAIN_ONLY_MEMORY_LOBE) {
      log_->warn(
          "training.train_only: memory_lobe without training.init_from: the frozen base is random");
    }
    return optimizer_->Fill(layer_.ctx, InitialSource(layers, seed));
  }
  auto reader = checkpoints::OpenCheckpoint(from);
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, reader.status()));
  auto plan = PlanInit((*reader)->manifest(), spec().model(), spec().training().train_only());
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, plan.status()));
  log_->info("weights from {}", from);
  for (const std::string& note : plan->notes) log_->warn("training.init_from: {}", note);
  return optimizer_->Fill(layer_.ctx,
                          InitFromSource(reader->get(), *std::move(plan), layers, seed));
}

absl::Status Trainer::CheckResumable(const v1::StepManifest& manifest) {
  ELA_ASSIGN_OR_RETURN(const v1::TrainingJob saved,
                       job::ParseJob(manifest.resolved_job(), "the checkpoint's job"));
  if (job::ModelToJson(saved.spec().model()) != job::ModelToJson(spec().model())) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint of step ", manifest.step(),
                     " is of another model than this job's spec.model: use another --run-dir or "
                     "checkpoint.path, or training.init_from"));
  }
  const v1::TrainerState& s = manifest.state();
  const bool same_mesh = s.data() == spec().parallelism().data() &&
                         s.sequence() == spec().parallelism().sequence() &&
                         s.expert() == spec().parallelism().expert();
  if (!same_mesh && spec().restart().on_other_world_size() == v1::ON_OTHER_WORLD_SIZE_REFUSE) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint was saved by data x sequence x expert = ", s.data(), " x ", s.sequence(),
        " x ", s.expert(), ", and restart.on_other_world_size is refuse"));
  }
  if (s.data_fingerprint() != loader_->fingerprint()) {
    log_->warn("the data has changed since the checkpoint: samples continue at {} of the new data",
               s.consumed_samples());
  }
  return absl::OkStatus();
}

absl::Status Trainer::LoadStep(const v1::StepManifest& manifest) {
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, CheckResumable(manifest)));
  const absl::Time begin = absl::Now();
  auto reader = checkpoints::StepReader::Open(CheckpointPath(spec(), folder_), manifest);
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, reader.status()));
  ELA_RETURN_IF_ERROR(optimizer_->Load(layer_.ctx, reader->get()));
  state_ = manifest.state();
  state_.set_data_fingerprint(loader_->fingerprint());
  state_.set_tokenizer_hash(tokenizer_hash_);
  checkpoint_step_ = manifest.step();
  metrics_->OnCheckpoint("load", absl::ToDoubleSeconds(absl::Now() - begin));
  if (lead()) metrics_->OnCommitted(manifest.commit_unix_ms());
  log_->info("resumed from the checkpoint of step {}", manifest.step());
  return absl::OkStatus();
}

// From the newest committed step down to one that is whole. False: there is none at all.
absl::StatusOr<bool> Trainer::LoadNewest() {
  std::vector<v1::StepManifest> steps;
  absl::Status listed;
  if (lead()) {
    auto list = checkpointer_->catalog()->List();
    listed = list.status();
    if (list.ok()) steps = *std::move(list);
  }
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, listed));
  int64_t count = static_cast<int64_t>(steps.size());
  ELA_RETURN_IF_ERROR(world_->Broadcast(&count, sizeof count, 0));
  absl::Status last;
  for (int64_t i = count; i-- > 0;) {
    ELA_ASSIGN_OR_RETURN(
        const std::string text,
        BroadcastString(*world_, lead() ? steps[static_cast<size_t>(i)].SerializeAsString() : ""));
    v1::StepManifest manifest;
    if (!manifest.ParseFromString(text)) return absl::InternalError("a manifest is broken");
    last = LoadStep(manifest);
    if (last.ok()) return true;
    if (!absl::IsDataLoss(last) && !absl::IsNotFound(last)) return last;
    log_->error("the checkpoint of step {} is damaged and not used: {}", manifest.step(),
                std::string(last.message()));
  }
  if (!last.ok()) return last;
  return false;
}

v1::StepManifest Trainer::ManifestHeader() const {
  v1::StepManifest header;
  header.set_step(state_.step());
  header.set_attempt(options_.attempt);
  header.set_job(options_.job_id.empty() ? job_.metadata().name() : options_.job_id);
  header.set_resolved_job(job::ToYaml(job_));
  header.set_code_version(VersionNumber());
  for (const v1::TensorRecord& tensor : CheckpointTensors(*store_)) {
    *header.add_tensors() = tensor;
  }
  v1::TrainerState* state = header.mutable_state();
  *state = state_;
  state->set_data(mesh_->sizes().data);
  state->set_sequence(mesh_->sizes().sequence);
  state->set_expert(mesh_->sizes().expert);
  state->mutable_spike_window()->Assign(spikes_.window.begin(), spikes_.window.end());
  return header;
}

// That an earlier checkpoint was lost says nothing of what comes after it.
absl::Status Trainer::FinishEarlierCheckpoint() {
  const absl::Status earlier = checkpointer_->Finish();
  if (earlier.ok() || absl::IsAborted(earlier)) return earlier;
  ReportLostCheckpoint(earlier);
  return absl::OkStatus();
}

// A checkpoint that fails (a full disk) must not end the training: it is reported, and the last one
// stays.
absl::Status Trainer::StartCheckpoint() {
  phases_->Begin("checkpoint");
  const absl::Time begin = absl::Now();
  ELA_RETURN_IF_ERROR(FinishEarlierCheckpoint());
  absl::Status started = checkpointer_->Start(*optimizer_, ManifestHeader());
  if (started.ok()) checkpoint_step_ = state_.step();
  if (started.ok() && !spec().checkpoint().async()) {
    started = checkpointer_->Finish();
    ReportShard();
  }
  metrics_->OnCheckpoint("snapshot", absl::ToDoubleSeconds(absl::Now() - begin));
  if (started.ok() || absl::IsAborted(started)) return started;
  ReportLostCheckpoint(started);
  checkpoint_step_ = 0;
  return absl::OkStatus();
}

absl::Status Trainer::SaveNow() {
  ELA_RETURN_IF_ERROR(FinishEarlierCheckpoint());
  ELA_RETURN_IF_ERROR(checkpointer_->Start(*optimizer_, ManifestHeader()));
  return checkpointer_->Finish();
}

// False: somebody who runs the trainer by hand wants it to go. A coordinator ends it by force when
// its patience is over, and tells what was lost.
absl::StatusOr<bool> Trainer::TryAgain() {
  absl::Status mine;
  if (superseded_ || (client_ != nullptr && client_->superseded())) {
    mine = absl::AbortedError("a newer attempt of this job exists: nothing more is written");
  } else if (options_.coordinator.empty() && options_.stop_requested()) {
    mine = absl::CancelledError();
  }
  const absl::Status all = AgreeOk(*world_, mine);
  if (absl::IsCancelled(all)) return false;
  ELA_RETURN_IF_ERROR(all);
  return true;
}

// The training is not thrown away because its last checkpoint cannot be written: as long as it may
// be a matter of time (a full or read-only disk, a coordinator that is away) it is tried again.
absl::Status Trainer::FinalCheckpoint() {
  phases_->Begin("checkpoint");
  absl::Duration wait = absl::Seconds(1);
  absl::Status saved = checkpoint_step_ == state_.step() ? checkpointer_->Finish() : SaveNow();
  while (MayPass(saved)) {
    checkpoint_step_ = 0;
    ReportLostCheckpoint(saved);
    ELA_ASSIGN_OR_RETURN(const bool again, TryAgain());
    if (!again) return saved;
    log_->warn("the checkpoint of step {} is tried again in {}", state_.step(),
               absl::FormatDuration(wait));
    absl::SleepFor(wait);
    wait = std::min(2 * wait, kLongestWait);
    saved = SaveNow();
  }
  ELA_RETURN_IF_ERROR(saved);
  checkpoint_step_ = state_.step();
  log_->info("checkpoint of step {} is committed", state_.step());
  return absl::OkStatus();
}

}  // namespace ela::trainer
