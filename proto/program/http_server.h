// A program's HTTP port, which Prometheus scrapes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela {

/// What GET of a path answers. `body` is called for every request, from any of a few threads.
struct HttpPage {
  std::string path;
  std::string content_type;
  std::function<std::string()> body;
};

/// The pages run on threads with the system's usual stack: as a stack holds the thread-local
/// storage of every library too, servers that choose a small one leave nothing for the pages.
class HttpServer {
 public:
  /// `address` is HOST:PORT, port 0 for any; an IPv6 host is in brackets. Unavailable if it can't
  /// be listened on.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           const std::vector<HttpPage>& pages);
  /// Waits for the requests under way.
  ~HttpServer();
  /// HOST:PORT, with the port that was found.
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  HttpServer(std::unique_ptr<Impl> impl, std::string address);
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

/// Content type of the text that Prometheus reads.
inline constexpr char kPrometheusText[] = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace ela
