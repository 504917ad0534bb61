// What every command gets: its arguments, the world, and the ways to answer. One function a
// command.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/cli/arguments.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/io.h"
#include "coordinator/cli/job_view.h"

namespace ela::cli {

class Session {
 public:
  Session(const Arguments& arguments, const Io& io) : arguments_(arguments), io_(io) {}

  const Arguments& arguments() const { return arguments_; }
  const Io& io() const { return io_; }
  std::ostream& out() const { return *io_.out; }
  std::string format() const { return arguments_.Get("output", "table"); }
  bool structured() const { return format() == "json" || format() == "yaml"; }
  bool quiet() const { return arguments_.Has("quiet"); }

  /// Connects on first use.
  absl::StatusOr<Client*> client();
  /// --timeout as the longest time to follow a job; InfiniteDuration if not given.
  absl::StatusOr<absl::Duration> longest_follow() const;

  /// How to draw: the terminal's size, or --width; colours and Unicode as the environment wants
  /// them.
  ViewStyle style() const;
  /// Columns that tables may take; 0: any.
  int table_columns() const;

  /// Prints JSON or YAML, as --output says.
  void Emit(const nlohmann::ordered_json& json) const;
  /// "ela: text" on standard error; nothing if --quiet.
  void Note(const std::string& text) const;
  /// The error, one line a problem, and its exit code.
  int Fail(const absl::Status& status) const;

 private:
  const Arguments& arguments_;
  const Io& io_;
  std::unique_ptr<Client> client_;
};

int Submit(Session& session);
int Validate(Session& session);
int List(Session& session);
int Get(Session& session);
int Describe(Session& session);
int Watch(Session& session);
int Logs(Session& session);
int Events(Session& session);
int Cancel(Session& session);
int Pause(Session& session);
int Resume(Session& session);
int Wait(Session& session);
int ShowCluster(Session& session);
int ShowVersion(Session& session);
int Completion(Session& session);

/// Watches until the job ends; the exit code says how.
int WatchJob(Session& session, const std::string& job);
/// 0, 10 or 11 for the state that a followed job ended in.
int ExitCodeOf(v1::JobState state);

}  // namespace ela::cli
