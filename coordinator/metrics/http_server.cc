#include "coordinator/metrics/http_server.h"

#include <CivetServer.h>
#include <prometheus/text_serializer.h>

#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ela::coordinator {
namespace {

class Page : public CivetHandler {
 public:
  Page(const char* type, std::function<std::string()> body) : type_(type), body_(std::move(body)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const std::string body = body_();
    mg_printf(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
        type_, body.size());
    mg_write(connection, body.data(), body.size());
    return true;
  }

 private:
  const char* const type_;
  const std::function<std::string()> body_;
};

}  // namespace

struct HttpServer::Impl {
  Page metrics;
  Page discovery;
  Page health;
  std::unique_ptr<CivetServer> server;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl, std::string address)
    : impl_(std::move(impl)), address_(std::move(address)) {}

HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              const Core* core,
                                                              const Metrics* metrics) {
  std::unique_ptr<Impl> impl(
      new Impl{Page("text/plain; version=0.0.4; charset=utf-8",
                    [=] {
                      std::vector<prometheus::MetricFamily> families = metrics->Collect();
                      for (prometheus::MetricFamily& family : CollectJobs(*core)) {
                        families.push_back(std::move(family));
                      }
                      return prometheus::TextSerializer().Serialize(families);
                    }),
               Page("application/json", [=] { return ServiceDiscovery(*core); }),
               Page("text/plain", [] { return std::string("ok\n"); }), nullptr});
  try {
    impl->server = std::make_unique<CivetServer>(std::vector<std::string>{
        "listening_ports", address, "num_threads", "2", "request_timeout_ms", "10000"});
  } catch (const CivetException&) {
    return absl::UnavailableError(absl::StrCat(address,
                                               " cannot be listened on for metrics: in use or not "
                                               "allowed; choose another with --metrics-listen"));
  }
  impl->server->addHandler("/metrics$", impl->metrics);
  impl->server->addHandler("/sd$", impl->discovery);
  impl->server->addHandler("/healthz$", impl->health);
  const std::vector<int> ports = impl->server->getListeningPorts();
  const std::string host = address.substr(0, address.rfind(':'));
  const std::string found = absl::StrCat(host, ":", ports.empty() ? 0 : ports[0]);
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl), found));
}

}  // namespace ela::coordinator
