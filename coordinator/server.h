// The whole coordinator in one object: store, loops, services, ports.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"

namespace ela::coordinator {

struct ServerOptions {
  std::string listen = "127.0.0.1:7070";
  std::string metrics_listen = "127.0.0.1:7071";  // empty: none
  std::string state_dir;
  std::string program_dir;     // ela-trainer and ela-supervisor
  std::string supervisor_dir;  // empty: program_dir
  Settings settings;           // slots and timing; the rest is filled in
  int executor_threads = 4;
};

/// FailedPrecondition unless the host of host:port is this machine's loopback.
absl::Status CheckLoopback(const std::string& address);

class CoordinatorServer {
 public:
  /// Locks the state directory, opens the store, adopts what runs, and serves. Errors are one line
  /// that says what to do.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const ServerOptions& options);
  /// Stops serving; running jobs run on.
  ~CoordinatorServer();

  const std::string& address() const;
  const std::string& metrics_address() const;
  const Core& core() const;

 private:
  struct Impl;
  explicit CoordinatorServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ela::coordinator
