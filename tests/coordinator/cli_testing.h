// Runs `ela` in this process against a coordinator that answers from a script: it implements the
// real service, to test the client alone.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/cli/cli.h"
#include "coordinator/cli/io.h"
#include "ela/v1/coordinator.grpc.pb.h"

namespace ela::cli {

/// Holds one job. Watch sends `updates` in order; then it ends the stream, or waits for the caller
/// to leave.
class FakeCoordinator final : public v1::Coordinator::Service {
 public:
  v1::Job job;
  std::vector<v1::WatchUpdate> updates;
  std::vector<v1::LogChunk> chunks;
  std::vector<v1::Event> events;
  grpc::Status answer = grpc::Status::OK;  // of every unary call
  std::atomic<bool> stays_open{false};
  v1::SubmitRequest submitted;
  std::string authorization;         // of the newest call
  std::atomic<bool> watched{false};  // every update has been sent

  grpc::Status Submit(grpc::ServerContext* context, const v1::SubmitRequest* request,
                      v1::SubmitResponse* response) override {
    submitted = *request;
    *response->mutable_job() = job;
    return Answer(context);
  }
  grpc::Status List(grpc::ServerContext* context, const v1::ListRequest* request,
                    v1::ListResponse* response) override {
    *response->add_jobs() = job;
    if (request->page_token().empty()) response->set_next_page_token("second");
    return Answer(context);
  }
  grpc::Status Get(grpc::ServerContext* context, const v1::GetRequest*,
                   v1::Job* response) override {
    *response = job;
    return Answer(context);
  }
  grpc::Status Events(grpc::ServerContext* context, const v1::EventsRequest* request,
                      v1::EventsResponse* response) override {
    for (const v1::Event& event : events) {
      if (event.sequence() > request->after_sequence()) *response->add_events() = event;
    }
    return Answer(context);
  }
  grpc::Status Cancel(grpc::ServerContext* context, const v1::CancelRequest*,
                      v1::Job* response) override {
    *response = job;
    return Answer(context);
  }
  grpc::Status GetCluster(grpc::ServerContext* context, const v1::GetClusterRequest*,
                          v1::Cluster* cluster) override {
    cluster->set_running_jobs(1);
    v1::Node* node = cluster->add_nodes();
    node->set_name("local");
    node->set_slots(4);
    return Answer(context);
  }
  grpc::Status GetVersion(grpc::ServerContext* context, const v1::GetVersionRequest*,
                          v1::Version* version) override {
    version->set_version("9.9.9");
    return Answer(context);
  }
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest*,
                     grpc::ServerWriter<v1::WatchUpdate>* writer) override {
    if (!answer.ok()) return answer;
    for (const v1::WatchUpdate& update : updates) writer->Write(update);
    watched = true;
    return Stay(context);
  }
  grpc::Status Logs(grpc::ServerContext* context, const v1::LogsRequest*,
                    grpc::ServerWriter<v1::LogChunk>* writer) override {
    if (!answer.ok()) return answer;
    for (const v1::LogChunk& chunk : chunks) writer->Write(chunk);
    watched = true;
    return Stay(context);
  }

  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }

 private:
  grpc::Status Answer(grpc::ServerContext* context) {
    const auto& metadata = context->client_metadata();
    const auto found = metadata.find("authorization");
    authorization =
        found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
    return answer;
  }
  grpc::Status Stay(grpc::ServerContext* context) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (stays_open && !closing_ && !context->IsCancelled()) {
      changed_.wait_for(lock, std::chrono::milliseconds(20));
    }
    return closing_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "shutting down")
                    : grpc::Status::OK;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false;
};

/// The service on a loopback port; port 0 chooses one.
class FakeServer {
 public:
  explicit FakeServer(
      FakeCoordinator* service, int port = 0,
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials())
      : service_(service) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), credentials, &port_);
    builder.RegisterService(service);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() {
    service_->Close();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  FakeCoordinator* service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

struct Outcome {
  int code;
  std::string out, err;
};

/// One run of the program. `in`, `env` and the terminal may be set before.
class Cli {
 public:
  Cli() {
    io_.out = &out_;
    io_.err = &err_;
    io_.in = &in_;
    io_.terminal_size = [this] { return size; };
    io_.now_unix_ms = [] { return int64_t{1'700'000'100'000}; };
    io_.env = [this](const char* name) { return env.count(name) ? env[name] : std::string(); };
    io_.interrupted = &interrupted;
    io_.working_dir = "/home/ada";
    io_.program_dir = "/nowhere";
    io_.exec = [this](const std::string& path, const std::vector<std::string>& argv) {
      executed = argv;
      executed_path = path;
      return ENOENT;
    };
  }

  Outcome Run(std::vector<std::string> words) {
    io_.out_is_terminal = is_terminal;
    const int code = cli::Run(words, io_);
    Outcome outcome{code, out_.str(), err_.str()};
    out_.str("");
    err_.str("");
    return outcome;
  }
  void Type(const std::string& text) {
    in_.clear();
    in_.str(text);
  }

  std::map<std::string, std::string> env;
  bool is_terminal = false;
  TerminalSize size;
  std::atomic<bool> interrupted{false};
  std::vector<std::string> executed;
  std::string executed_path;

 private:
  std::stringstream in_, out_, err_;
  Io io_;
};

/// A job in a state, as a Watch stream would send it.
inline v1::Job MakeJob(v1::JobState state) {
  v1::Job job;
  job.set_id("j-0123456789ab");
  job.mutable_spec()->mutable_metadata()->set_name("demo");
  job.set_state(state);
  job.set_created_unix_ms(1'700'000'000'000);
  job.set_started_unix_ms(1'700'000'010'000);
  job.set_run_dir("/runs/j-0123456789ab");
  return job;
}

inline v1::WatchUpdate MakeUpdate(v1::JobState state) {
  v1::WatchUpdate update;
  *update.mutable_job() = MakeJob(state);
  return update;
}

inline v1::Progress MakeProgress(int64_t step) {
  v1::Progress progress;
  progress.set_step(step);
  progress.set_total_steps(1000);
  progress.set_loss(4.2314);
  progress.set_grad_norm(0.9127);
  progress.set_learning_rate(8.1e-4);
  progress.set_tokens_per_second(12345);
  progress.set_tokens(1'100'000);
  progress.set_eta_seconds(72);
  progress.set_last_checkpoint_step(500);
  progress.set_last_checkpoint_unix_ms(1'700'000'088'000);
  return progress;
}

}  // namespace ela::cli
