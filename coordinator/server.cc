#include "coordinator/server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/background/loop.h"
#include "coordinator/background/monitor.h"
#include "coordinator/background/observer.h"
#include "coordinator/background/outbox.h"
#include "coordinator/background/scheduler.h"
#include "coordinator/executor.h"
#include "coordinator/launch/local.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/service.h"
#include "coordinator/streams.h"
#include "coordinator/supervisor/files.h"
#include "proto/status_macros.h"

namespace ela::coordinator {
namespace {

constexpr absl::Duration kOutboxPeriod = absl::Milliseconds(500);
constexpr absl::Duration kObserverPeriod = absl::Milliseconds(200);
constexpr absl::Duration kMonitorPeriod = absl::Milliseconds(500);
constexpr absl::Duration kSchedulerPeriod = absl::Milliseconds(200);
constexpr absl::Duration kStreamPeriod = absl::Milliseconds(300);
constexpr auto kShutdownPatience = std::chrono::seconds(3);

/// Holds <state-dir>/lock for the life of the process.
absl::StatusOr<int> LockStateDir(const std::string& state_dir) {
  const std::string path = state_dir + "/lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const auto owner = ReadFileIfExists(path);
    close(fd);
    return absl::UnavailableError(
        absl::StrCat("state directory ", state_dir, " is in use by another ela-coordinator (pid ",
                     owner.ok() && *owner ? absl::StripAsciiWhitespace(**owner) : "unknown",
                     "); stop it or choose another --state-dir"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    const absl::Status status = ErrnoStatus(path);
    close(fd);
    return status;
  }
  return fd;
}

std::string HostName() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

std::string FindDevice() {
  int gpus = 0;
  while (access(absl::StrCat("/dev/nvidia", gpus).c_str(), F_OK) == 0) ++gpus;
  return gpus == 0 ? "cpu" : absl::StrCat("cuda:", gpus);
}

}  // namespace

struct CoordinatorServer::Impl {
  ~Impl();
  absl::Status Open(const ServerOptions& options);
  absl::Status Listen(const ServerOptions& options);
  std::unique_ptr<grpc::Server> TryListen(const std::string& address, int* port);
  void StartLoops();

  int lock_fd = -1;
  SystemClock clock;
  std::unique_ptr<kv::KeyValueStore> store;
  std::unique_ptr<JobTable> jobs;
  std::unique_ptr<LocalLauncher> launcher;
  Core core;
  Metrics metrics;
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<StreamHub> streams;
  std::unique_ptr<CoordinatorService> service;
  std::unique_ptr<TrainerReportsService> trainer_service;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Outbox> outbox;
  std::unique_ptr<Observer> observer;
  std::unique_ptr<Monitor> monitor;
  absl::Mutex loops_mutex;
  std::vector<std::unique_ptr<Loop>> loops;  // complete before anyone can wake them
  Loop* scheduler_loop ABSL_GUARDED_BY(loops_mutex) = nullptr;
  Loop* outbox_loop ABSL_GUARDED_BY(loops_mutex) = nullptr;
};

absl::Status CheckLoopback(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not HOST:PORT, PORT from 0 to 65535"));
  }
  // A whole IPv4 address: neither a name that begins alike nor a list of addresses.
  const std::string host = address.substr(0, colon);
  in_addr ipv4{};
  const bool in_127 =
      absl::StartsWith(host, "127.") && inet_pton(AF_INET, host.c_str(), &ipv4) == 1;
  if (in_127 || host == "localhost" || host == "[::1]") return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("refusing to listen on ", address,
                   ": there is no TLS and no authentication yet; use 127.0.0.1:PORT"));
}

absl::Status CoordinatorServer::Impl::Open(const ServerOptions& options) {
  ELA_RETURN_IF_ERROR(CheckLoopback(options.listen));
  if (!options.metrics_listen.empty()) {
    ELA_RETURN_IF_ERROR(CheckLoopback(options.metrics_listen));
  }
  ELA_RETURN_IF_ERROR(MakeDirectories(options.state_dir + "/jobs"));
  ELA_ASSIGN_OR_RETURN(lock_fd, LockStateDir(options.state_dir));
  ELA_ASSIGN_OR_RETURN(store,
                       kv::OpenRocksDb(options.state_dir + "/store", kv::OpenMode::kReadWrite));
  ELA_ASSIGN_OR_RETURN(jobs, JobTable::Open(store.get(), &clock));
  LocalLauncher::Options local;
  local.state_dir = options.state_dir;
  local.trainer_path = options.program_dir + "/ela-trainer";
  local.supervisor_path =
      (options.supervisor_dir.empty() ? options.program_dir : options.supervisor_dir) +
      "/ela-supervisor";
  local.slots = static_cast<int>(options.settings.slots);
  launcher = std::make_unique<LocalLauncher>(local);
  core.settings = options.settings;
  core.settings.state_dir = options.state_dir;
  core.settings.node_name = HostName();
  core.settings.device = FindDevice();
  core.jobs = jobs.get();
  core.launcher = launcher.get();
  core.random = SystemRandom;
  executor = std::make_unique<Executor>(options.executor_threads);
  streams = std::make_unique<StreamHub>(executor.get());
  jobs->SetListener([this](const std::string& id) {
    streams->Wake(id);
    absl::MutexLock lock(&loops_mutex);
    if (outbox_loop != nullptr) outbox_loop->Wake();
    if (scheduler_loop != nullptr) scheduler_loop->Wake();
  });
  return absl::OkStatus();
}

std::unique_ptr<grpc::Server> CoordinatorServer::Impl::TryListen(const std::string& address,
                                                                 int* port) {
  grpc::ServerBuilder builder;
  // Or a second coordinator would share the port and take half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), port);
  builder.RegisterService(service.get());
  builder.RegisterService(trainer_service.get());
  return builder.BuildAndStart();
}

absl::Status CoordinatorServer::Impl::Listen(const ServerOptions& options) {
  if (!options.metrics_listen.empty()) {
    absl::StatusOr<std::unique_ptr<HttpServer>> server =
        HttpServer::Start(options.metrics_listen, MetricsPages(&core, &metrics));
    if (!server.ok()) {
      return absl::Status(
          server.status().code(),
          absl::StrCat(server.status().message(), "; choose another with --metrics-listen"));
    }
    http = *std::move(server);
    core.settings.metrics_address = http->address();
  }
  const ServiceContext context{&core, executor.get(), streams.get(), &metrics};
  service = std::make_unique<CoordinatorService>(context);
  trainer_service = std::make_unique<TrainerReportsService>(context);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  const std::string host = options.listen.substr(0, options.listen.rfind(':'));
  int port = 0;
  if (absl::EndsWith(options.listen, ":0")) {
    // Ranks that run know the port of the coordinator before this one: take it again if it is free.
    const auto before = ReadFileIfExists(options.state_dir + "/address");
    if (before.ok() && *before) {
      server = TryListen(std::string(absl::StripAsciiWhitespace(**before)), &port);
    }
  }
  if (server == nullptr || port == 0) server = TryListen(options.listen, &port);
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat(options.listen,
                     " cannot be listened on: in use or not allowed; is another "
                     "ela-coordinator running? Choose another with --listen"));
  }
  core.settings.address = absl::StrCat(host, ":", port);
  ELA_RETURN_IF_ERROR(
      WriteFileDurably(options.state_dir + "/address", core.settings.address + "\n", 0600));
  return WriteFileDurably(options.state_dir + "/metrics-address",
                          core.settings.metrics_address + "\n", 0600);
}

void CoordinatorServer::Impl::StartLoops() {
  scheduler = std::make_unique<Scheduler>(&core);
  outbox = std::make_unique<Outbox>(&core);
  observer = std::make_unique<Observer>(&core);
  monitor = std::make_unique<Monitor>(&core);
  observer->Adopt();
  absl::MutexLock lock(&loops_mutex);
  const auto add = [this](absl::Duration period, std::function<void()> tick) {
    return loops.emplace_back(std::make_unique<Loop>(period, std::move(tick))).get();
  };
  scheduler_loop = add(kSchedulerPeriod, [this] { scheduler->Tick(); });
  outbox_loop = add(kOutboxPeriod, [this] { outbox->Tick(); });
  add(kObserverPeriod, [this] { observer->Tick(); });
  add(kMonitorPeriod, [this] { monitor->Tick(); });
  add(kStreamPeriod, [this] { streams->WakeAll(); });
}

CoordinatorServer::Impl::~Impl() {
  if (streams != nullptr) streams->StopAll();
  if (server != nullptr) {
    server->Shutdown(std::chrono::system_clock::now() + kShutdownPatience);
    server->Wait();
  }
  for (const auto& loop : loops) loop->Stop();
  {
    absl::MutexLock lock(&loops_mutex);
    scheduler_loop = outbox_loop = nullptr;
  }
  loops.clear();
  http.reset();
  executor.reset();
  if (lock_fd >= 0) close(lock_fd);
}

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    const ServerOptions& options) {
  auto impl = std::make_unique<Impl>();
  ELA_RETURN_IF_ERROR(impl->Open(options));
  ELA_RETURN_IF_ERROR(impl->Listen(options));
  impl->StartLoops();
  return std::unique_ptr<CoordinatorServer>(new CoordinatorServer(std::move(impl)));
}

CoordinatorServer::CoordinatorServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorServer::~CoordinatorServer() = default;
const std::string& CoordinatorServer::address() const { return impl_->core.settings.address; }
const std::string& CoordinatorServer::metrics_address() const {
  return impl_->core.settings.metrics_address;
}
const Core& CoordinatorServer::core() const { return impl_->core; }

}  // namespace ela::coordinator
