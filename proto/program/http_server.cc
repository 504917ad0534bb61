#include "proto/program/http_server.h"

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ela {

struct HttpServer::Impl {
  ~Impl() {
    server.stop();
    if (listener.joinable()) listener.join();
  }
  httplib::Server server;
  std::thread listener;
  std::atomic<bool> ended = false;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl, std::string address)
    : impl_(std::move(impl)), address_(std::move(address)) {}

HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              const std::vector<HttpPage>& pages) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not HOST:PORT"));
  }
  const std::string written = address.substr(0, colon);
  const std::string host(absl::StripSuffix(absl::StripPrefix(written, "["), "]"));

  auto impl = std::make_unique<Impl>();
  httplib::Server& server = impl->server;
  for (const HttpPage& page : pages) {
    server.Get(page.path, [page](const httplib::Request&, httplib::Response& response) {
      response.set_content(page.body(), page.content_type);
    });
  }
  server.new_task_queue = [] { return new httplib::ThreadPool(2); };
  // A connection kept open would keep one of the threads.
  server.set_keep_alive_max_count(1);
  server.set_read_timeout(5);
  server.set_write_timeout(5);
  server.set_payload_max_length(0);
  // The library's own options would let two programs share a port and each get half the requests.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  if (port == 0) {
    port = server.bind_to_any_port(host);
  } else if (!server.bind_to_port(host, port)) {
    port = -1;
  }
  if (port < 0) {
    return absl::UnavailableError(
        absl::StrCat(address, " cannot be listened on: in use or not allowed"));
  }
  // A server that is stopped before it runs would not notice.
  std::atomic<bool>& ended = impl->ended;
  impl->listener = std::thread([&server, &ended] {
    server.listen_after_bind();
    ended = true;
  });
  while (!server.is_running() && !ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return std::unique_ptr<HttpServer>(
      new HttpServer(std::move(impl), absl::StrCat(written, ":", port)));
}

}  // namespace ela
