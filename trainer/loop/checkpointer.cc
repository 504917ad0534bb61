#include "trainer/loop/checkpointer.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/status_macros.h"
#include "trainer/loop/gather.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {

Checkpointer::Checkpointer(Communicator* world, CheckpointerOptions options)
    : world_(world), options_(std::move(options)) {}

Checkpointer::~Checkpointer() {
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<std::unique_ptr<Checkpointer>> Checkpointer::Open(Communicator* world,
                                                                 CheckpointerOptions options) {
  std::unique_ptr<Checkpointer> checkpointer(new Checkpointer(world, std::move(options)));
  absl::Status opened;
  if (world->rank() == 0) {
    auto catalog = checkpoints::Catalog::OpenForWriting(checkpointer->options_.path,
                                                        checkpointer->options_.attempt);
    if (catalog.ok()) checkpointer->catalog_ = *std::move(catalog);
    opened = catalog.status();
  }
  ELA_RETURN_IF_ERROR(AgreeOk(*world, opened));
  // Without a coordinator the catalog numbers the attempts.
  int64_t& attempt = checkpointer->options_.attempt;
  if (world->rank() == 0) attempt = checkpointer->catalog_->attempt();
  ELA_RETURN_IF_ERROR(world->Broadcast(&attempt, sizeof attempt, 0));
  return checkpointer;
}

absl::Status Checkpointer::Start(const Zero1Optimizer& optimizer, const v1::StepManifest& header) {
  ELA_RETURN_IF_ERROR(Finish());
  header_ = header;
  header_.set_attempt(options_.attempt);
  optimizer.Snapshot(&snapshot_);
  checkpoints::WriteOptions write;
  write.path = options_.path;
  write.step = header.step();
  write.attempt = options_.attempt;
  write.writer = world_->rank();
  written_ = false;
  phase_ = Phase::kWriting;
  thread_ = std::thread([this, write] {
    const absl::Time begin = absl::Now();
    shard_ = checkpoints::WriteShard(write, snapshot_.pieces);
    last_write_seconds_ = absl::ToDoubleSeconds(absl::Now() - begin);
    if (shard_.ok()) last_bytes_ = shard_->bytes();
    written_ = true;
  });
  return absl::OkStatus();
}

absl::Status Checkpointer::GatherManifests(v1::StepManifest* manifest) {
  ELA_RETURN_IF_ERROR(AgreeOk(*world_, shard_.status()));
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> shards,
                       GatherStrings(*world_, shard_->SerializeAsString()));
  int64_t bytes = 0;
  for (const std::string& shard : shards) {
    v1::WriterManifest* writer = manifest->add_writers();
    if (!writer->ParseFromString(shard))
      return absl::InternalError("a writer's manifest is broken");
    bytes += writer->bytes();
  }
  manifest->set_bytes(bytes);
  return absl::OkStatus();
}

absl::Status Checkpointer::Collect() {
  if (phase_ != Phase::kWriting) return absl::OkStatus();
  thread_.join();
  phase_ = Phase::kIdle;
  v1::StepManifest manifest = header_;
  ELA_RETURN_IF_ERROR(GatherManifests(&manifest));
  if (world_->rank() != 0) return absl::OkStatus();
  phase_ = Phase::kCommitting;
  commit_done_ = false;
  commit_error_taken_ = false;
  thread_ = std::thread(
      [this, manifest = std::move(manifest)]() mutable { Commit(std::move(manifest)); });
  return absl::OkStatus();
}

absl::Status Checkpointer::CommitNow(const v1::StepManifest& manifest) {
  if (options_.gate != nullptr) {
    ELA_RETURN_IF_ERROR(options_.gate(manifest.step(), manifest.bytes(), /*committed=*/false));
  }
  const absl::Status committed = catalog_->Commit(manifest);
  if (absl::IsFailedPrecondition(committed)) return absl::AbortedError(committed.message());
  ELA_RETURN_IF_ERROR(committed);
  committed_step_ = manifest.step();
  committed_unix_ms_ = manifest.commit_unix_ms();
  // It is committed, whatever becomes of the news and the housekeeping.
  if (options_.gate != nullptr) {
    options_.gate(manifest.step(), manifest.bytes(), /*committed=*/true).IgnoreError();
  }
  retention_status_ = catalog_->Collect(options_.keep_last, options_.keep_every);
  return absl::OkStatus();
}

void Checkpointer::Commit(v1::StepManifest manifest) {
  const absl::Time begin = absl::Now();
  manifest.set_commit_unix_ms(absl::ToUnixMillis(begin));
  commit_status_ = CommitNow(manifest);
  last_commit_seconds_ = absl::ToDoubleSeconds(absl::Now() - begin);
  commit_done_ = true;
}

absl::Status Checkpointer::Finish() {
  ELA_RETURN_IF_ERROR(Collect());
  absl::Status mine;
  if (phase_ == Phase::kCommitting) {
    thread_.join();
    phase_ = Phase::kIdle;
    mine = TakeCommitError();
  }
  return AgreeOk(*world_, mine);
}

absl::Status Checkpointer::TakeCommitError() {
  if (!commit_done_ || commit_error_taken_) return absl::OkStatus();
  commit_error_taken_ = true;
  return commit_status_;
}

absl::Status Checkpointer::TakeRetentionError() {
  if (!commit_done_) return absl::OkStatus();
  return std::exchange(retention_status_, absl::OkStatus());
}

}  // namespace ela::trainer
