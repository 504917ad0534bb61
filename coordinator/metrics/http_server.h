// The HTTP port for Prometheus: /metrics, /sd (http_sd) and /healthz.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core.h"
#include "coordinator/metrics/metrics.h"

namespace ela::coordinator {

class HttpServer {
 public:
  /// `address` is host:port, port 0 for any. Unavailable when the port is taken.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           const Core* core,
                                                           const Metrics* metrics);
  ~HttpServer();
  /// host:port, with the port that was found.
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  HttpServer(std::unique_ptr<Impl> impl, std::string address);
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

}  // namespace ela::coordinator
