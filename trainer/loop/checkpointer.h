// Checkpoints behind the training:
//
//   Start    every rank copies its shard of masters and moments and goes on training, while a
//   thread
//            writes the copy and makes it durable
//   Collect  in a later step, when all ranks have said that theirs is durable: the manifests go to
//            rank 0, whose thread asks leave of the coordinator (if there is one), commits to the
//            catalog, tells the coordinator and applies the retention
//   Finish   waits for all of it: before the next checkpoint, and at the end
//
// Start, Collect and Finish are collective over the world.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

struct CheckpointerOptions {
  std::string path;
  int64_t attempt = 0;
  int64_t keep_last = 2, keep_every = 0;
  /// Rank 0's, from its thread: leave to commit (committed = false), and that it is done (true).
  /// Aborted if a newer attempt exists. Null: no coordinator.
  std::function<absl::Status(int64_t step, int64_t bytes, bool committed)> gate;
};

class Checkpointer {
 public:
  /// Collective. Rank 0 opens the catalog, which fences older attempts off.
  static absl::StatusOr<std::unique_ptr<Checkpointer>> Open(Communicator* world,
                                                            CheckpointerOptions options);
  ~Checkpointer();

  /// Finishes the one under way, then starts this one. `header`: the manifest without writers.
  absl::Status Start(const Zero1Optimizer& optimizer, const v1::StepManifest& header);
  /// This rank's shard of the checkpoint under way is written (well or not).
  bool shard_written() const { return phase_ == Phase::kWriting && written_; }
  absl::Status Collect();
  absl::Status Finish();

  /// Rank 0: how the last commit ended, once. Nothing to say: OK.
  absl::Status TakeCommitError();
  /// Rank 0: why older steps stay although a commit made them needless, once.
  absl::Status TakeRetentionError();
  int64_t committed_step() const { return committed_step_; }        // rank 0; 0: none yet
  int64_t committed_unix_ms() const { return committed_unix_ms_; }  // rank 0
  int64_t last_bytes() const { return last_bytes_; }                // of this rank's last shard
  double last_write_seconds() const { return last_write_seconds_; }
  double last_commit_seconds() const { return last_commit_seconds_; }  // rank 0
  /// Rank 0's catalog, while nothing is under way; null on the others.
  checkpoints::Catalog* catalog() const { return catalog_.get(); }

 private:
  enum class Phase { kIdle, kWriting, kCommitting };
  Checkpointer(Communicator* world, CheckpointerOptions options);
  absl::Status GatherManifests(v1::StepManifest* manifest);
  void Commit(v1::StepManifest manifest);  // rank 0's thread
  absl::Status CommitNow(const v1::StepManifest& manifest);

  Communicator* world_;
  CheckpointerOptions options_;
  std::unique_ptr<checkpoints::Catalog> catalog_;
  Phase phase_ = Phase::kIdle;
  v1::StepManifest header_;
  OptimizerSnapshot snapshot_;
  std::thread thread_;
  std::atomic<bool> written_{false}, commit_done_{false};
  absl::StatusOr<v1::WriterManifest> shard_ = absl::UnknownError("not written");
  absl::Status commit_status_, retention_status_;  // by the thread, read after commit_done_
  bool commit_error_taken_ = true;
  std::atomic<int64_t> committed_step_{0}, committed_unix_ms_{0}, last_bytes_{0};
  std::atomic<double> last_write_seconds_{0}, last_commit_seconds_{0};
};

}  // namespace ela::trainer
