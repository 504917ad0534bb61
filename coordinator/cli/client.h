// The connection to the coordinator, and what its answers mean for this program.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/cli/arguments.h"
#include "coordinator/cli/io.h"
#include "ela/v1/coordinator.grpc.pb.h"

namespace ela::cli {

class Client {
 public:
  /// Reads --address, --ca, --cert, --key, --token-file and --timeout. Connects lazily. A token
  /// never leaves this machine without TLS.
  static absl::StatusOr<std::unique_ptr<Client>> Create(const Arguments& arguments, const Io& io);

  const std::string& address() const { return address_; }
  v1::Coordinator::Stub& stub() { return *stub_; }

  /// A context with the token, and with the deadline of one answer unless the call is a stream.
  std::unique_ptr<grpc::ClientContext> NewContext(bool stream = false) const;

  /// Calls one unary method; the message of an error is for users.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Coordinator::Stub::*method)(grpc::ClientContext*,
                                                                              const Request&,
                                                                              Response*),
                                const Request& request) {
    const auto context = NewContext();
    Response response;
    const grpc::Status status = (stub_.get()->*method)(context.get(), request, &response);
    if (!status.ok()) return ToStatus(status);
    return response;
  }

  /// One line for users; Unavailable says how to reach a coordinator.
  absl::Status ToStatus(const grpc::Status& status) const;

 private:
  std::string address_;
  std::string token_;
  std::chrono::milliseconds timeout_{30000};
  std::unique_ptr<v1::Coordinator::Stub> stub_;
};

/// The exit code of an error.
int ExitCodeOf(const absl::Status& status);

}  // namespace ela::cli
