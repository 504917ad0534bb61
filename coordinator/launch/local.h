// Runs the ranks on this machine: a supervisor in its own session runs mpirun and outlives the
// coordinator. The attempt's directory <state-dir>/jobs/<job-id>/attempts/<n>/ is its identity (see
// supervisor/records.h).
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/launch/launcher.h"

namespace ela::coordinator {

class LocalLauncher : public Launcher {
 public:
  struct Options {
    std::string state_dir;        // absolute
    std::string trainer_path;     // ela-trainer
    std::string supervisor_path;  // ela-supervisor
    int slots = 1;
  };
  explicit LocalLauncher(Options options) : options_(std::move(options)) {}

  absl::Status Validate(const LaunchSpec& spec) override;
  absl::StatusOr<std::optional<std::string>> Find(const LaunchKey& key) override;
  absl::StatusOr<std::string> Launch(const LaunchSpec& spec) override;
  absl::StatusOr<Observation> Observe(const std::string& handle) override;
  absl::Status Signal(const std::string& handle, int64_t deadline_ms) override;
  absl::Status Stop(const std::string& handle, int64_t grace_ms, bool hung) override;
  absl::StatusOr<std::vector<LaunchKey>> ListOwned() override;
  std::string LogPath(const LaunchKey& key, const std::string& run_dir, int rank) override;
  absl::Status Forget(const std::string& handle) override;

  /// The command that the supervisor runs; mpirun's path first.
  std::vector<std::string> MpirunCommand(const LaunchSpec& spec, const std::string& mpirun) const;

 private:
  std::string AttemptDir(const LaunchKey& key) const;
  std::string DirOfHandle(const std::string& handle) const;
  absl::Status Prepare(const LaunchSpec& spec, const std::string& directory) const;
  absl::StatusOr<pid_t> StartSupervisor(const LaunchSpec& spec, const std::string& directory,
                                        int ready_fd);
  absl::Status Request(const std::string& handle, const StopRequest& request);
  Observation EndedWithoutRecord(const std::string& directory, const Claim& claim);
  void ReapChildren();

  const Options options_;
  absl::Mutex mutex_;
  std::set<pid_t> children_ ABSL_GUARDED_BY(mutex_);  // supervisors of this process, to be reaped
};

/// The full path of Open MPI's mpirun, from PATH. NotFound with what to install.
absl::StatusOr<std::string> FindMpirun();

/// The environment of the ranks: the coordinator's own without what belongs to another MPI run.
std::vector<std::string> RankEnvironment(int ranks, int cores);

}  // namespace ela::coordinator
