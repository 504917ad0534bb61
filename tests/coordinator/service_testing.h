// A coordinator with the real store, launcher, supervisor and mpirun, and a scripted trainer.
#pragma once

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/server.h"
#include "coordinator/supervisor/files.h"
#include "coordinator/supervisor/process.h"
#include "coordinator/supervisor/records.h"
#include "ela/v1/coordinator.grpc.pb.h"
#include "proto/job/job_file.h"

extern char** environ;

namespace ela::coordinator {

using Labels = std::map<std::string, std::string>;

struct JobOptions {
  int steps = 30;
  int checkpoint_every = 5;
  int ranks = 2;
  int max_failures = 3;
  int priority = 0;
  std::string time_limit;
  std::string name = "demo";
};

/// Polls a condition that another process brings about; false after a minute.
inline bool Eventually(const std::function<bool()>& holds) {
  for (int i = 0; i < 6000; ++i) {
    if (holds()) return true;
    poll(nullptr, 0, 10);
  }
  return false;
}

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    std::string pattern = testing::TempDir() + "ela-coordinator-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    for (const char* name : {"tokenizer.model", "text.bin", "text.idx"}) {
      std::ofstream(directory_ + "/" + name) << "x";
    }
    settings_.slots = 2;
    settings_.cancel_grace_ms = 300;
    settings_.heartbeat_interval_ms = 100;
  }

  ~ServiceTest() override {
    if (stub_ != nullptr) CancelAll();
    StopServer();
    KillCoordinator(SIGKILL);
    std::error_code error;
    std::filesystem::remove_all(directory_, error);
  }

  std::string state_dir() const { return directory_ + "/state"; }

  /// A coordinator in this process.
  void StartServer() {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.metrics_listen = metrics_listen_;
    options.state_dir = state_dir();
    options.program_dir = ELA_SCRIPTED_DIR;
    options.supervisor_dir = ELA_PROGRAM_DIR;
    options.settings = settings_;
    auto server = CoordinatorServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    Connect(server_->address());
  }
  void StopServer() {
    stub_.reset();
    server_.reset();
  }

  /// A coordinator of its own, to be killed.
  void StartCoordinator() {
    std::filesystem::remove(state_dir() + "/lock");
    coordinator_ = SpawnCoordinator({"--listen", "127.0.0.1:0", "--metrics-listen", ""});
    ASSERT_TRUE(Eventually([&] {
      const auto owner = ReadFileIfExists(state_dir() + "/lock");
      const auto address = ReadFileIfExists(state_dir() + "/address");
      if (!owner.ok() || !*owner || !address.ok() || !*address) return false;
      Connect((*address)->substr(0, (*address)->find('\n')));
      grpc::ClientContext context;
      SetDeadline(&context, 1);
      v1::Version version;
      return stub_->GetVersion(&context, v1::GetVersionRequest(), &version).ok();
    }));
  }
  pid_t SpawnCoordinator(std::vector<std::string> more, const std::string& log = "coordinator.log",
                         const std::string& state = "state") {
    std::vector<std::string> argv = {std::string(ELA_PROGRAM_DIR) + "/ela-coordinator",
                                     "--state-dir",
                                     directory_ + "/" + state,
                                     "--slots",
                                     "2",
                                     "--program-dir",
                                     ELA_SCRIPTED_DIR};
    argv.insert(argv.end(), more.begin(), more.end());
    std::vector<char*> pointers;
    for (std::string& argument : argv) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, (directory_ + "/" + log).c_str(),
                                     O_WRONLY | O_CREAT | O_APPEND, 0600);
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, argv[0].c_str(), &actions, nullptr, pointers.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }
  void KillCoordinator(int signal) {
    if (coordinator_ == 0) return;
    kill(coordinator_, signal);
    waitpid(coordinator_, nullptr, 0);
    coordinator_ = 0;
  }

  void Connect(const std::string& address) {
    stub_ =
        v1::Coordinator::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  static void SetDeadline(grpc::ClientContext* context, int seconds) {
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
  }

  v1::SubmitRequest Request(const Labels& labels, const JobOptions& options = {}) const {
    const int vocabulary = 256;
    std::string text = absl::StrCat(
        "apiVersion: ela/v1\nkind: TrainingJob\nmetadata: {name: ", options.name,
        "}\nspec:\n  model: {preset: recommended, vocab_size: ", vocabulary,
        ", hidden_size: 32, num_layers: 1, num_attention_heads: 2,",
        " moe: {num_experts: 1, intermediate_size: 64}}\n",
        "  tokenizer: {path: tokenizer.model}\n", "  data: {train: [{path: text}], seq_len: 32}\n",
        "  training: {steps: ", options.steps, ", global_batch_size: 2}\n",
        "  parallelism: {sequence: ", options.ranks, "}\n",
        "  checkpoint: {every_steps: ", options.checkpoint_every, "}\n",
        "  restart: {backoff: 20ms, max_failures: ", options.max_failures, "}\n",
        "  resources: {priority: ", options.priority,
        options.time_limit.empty() ? "" : ", time_limit: " + options.time_limit, "}\n");
    auto job = job::ParseJob(text, "job.yaml");
    EXPECT_TRUE(job.ok()) << job.status();
    v1::SubmitRequest request;
    if (job.ok()) *request.mutable_job() = *job;
    for (const auto& [name, value] : labels) {
      (*request.mutable_job()->mutable_metadata()->mutable_labels())[name] = value;
    }
    request.set_source_dir(directory_);
    return request;
  }
  grpc::Status TrySubmit(const v1::SubmitRequest& request, v1::SubmitResponse* response) {
    grpc::ClientContext context;
    SetDeadline(&context, 30);
    return stub_->Submit(&context, request, response);
  }
  std::string Submit(const Labels& labels, const JobOptions& options = {}) {
    v1::SubmitResponse response;
    const grpc::Status status = TrySubmit(Request(labels, options), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job().id();
  }

  v1::Job Get(const std::string& id) {
    grpc::ClientContext context;
    SetDeadline(&context, 30);
    v1::GetRequest request;
    request.set_job(id);
    v1::Job job;
    const grpc::Status status = stub_->Get(&context, request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  /// The job once it is as wanted.
  v1::Job Await(const std::string& id, const std::function<bool(const v1::Job&)>& wanted) {
    v1::Job job;
    EXPECT_TRUE(Eventually([&] {
      job = Get(id);
      return wanted(job);
    })) << job.DebugString();
    return job;
  }
  v1::Job AwaitState(const std::string& id, v1::JobState state) {
    return Await(id, [&](const v1::Job& job) { return job.state() == state; });
  }
  v1::Job AwaitStep(const std::string& id, int64_t step) {
    return Await(id, [&](const v1::Job& job) { return job.progress().step() >= step; });
  }
  v1::Job AwaitEnd(const std::string& id) {
    return Await(id, [&](const v1::Job& job) { return job.ended_unix_ms() != 0; });
  }
  template <typename Request>
  grpc::Status Call(grpc::Status (v1::Coordinator::Stub::*method)(grpc::ClientContext*,
                                                                  const Request&, v1::Job*),
                    const std::string& id) {
    grpc::ClientContext context;
    SetDeadline(&context, 30);
    Request request;
    request.set_job(id);
    v1::Job job;
    return (stub_.get()->*method)(&context, request, &job);
  }
  grpc::Status Cancel(const std::string& id) { return Call(&v1::Coordinator::Stub::Cancel, id); }
  grpc::Status Pause(const std::string& id) { return Call(&v1::Coordinator::Stub::Pause, id); }
  grpc::Status Resume(const std::string& id) { return Call(&v1::Coordinator::Stub::Resume, id); }

  std::vector<v1::Event> Events(const std::string& id) {
    grpc::ClientContext context;
    v1::EventsRequest request;
    request.set_job(id);
    v1::EventsResponse response;
    EXPECT_TRUE(stub_->Events(&context, request, &response).ok());
    return {response.events().begin(), response.events().end()};
  }
  /// I5: no gap in the events, and their fold is the state.
  void ExpectWholeHistory(const std::string& id) {
    v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
    int64_t sequence = 0;
    for (const v1::Event& event : Events(id)) {
      EXPECT_EQ(event.sequence(), ++sequence);
      EXPECT_EQ(event.from(), state) << event.DebugString();
      state = event.to();
    }
    EXPECT_EQ(state, Get(id).state());
  }

  std::string AttemptDir(const std::string& id, int attempt) const {
    return absl::StrCat(state_dir(), "/jobs/", id, "/attempts/", attempt);
  }
  /// The supervisor's pid, which is the session of every process of the attempt.
  pid_t SessionOf(const std::string& id, int attempt) const {
    const auto claim = ReadClaim(AttemptDir(id, attempt));
    EXPECT_TRUE(claim.ok() && claim->has_value());
    return claim.ok() && *claim ? static_cast<pid_t>((*claim)->pid) : 0;
  }
  /// Steps of metrics.jsonl, in order.
  std::vector<int> Steps(const std::string& id) const {
    std::ifstream file(state_dir() + "/jobs/" + id + "/metrics.jsonl");
    std::vector<int> steps;
    std::string line;
    while (std::getline(file, line)) steps.push_back(std::atoi(line.c_str() + line.find(':') + 1));
    return steps;
  }

 private:
  void CancelAll() {
    grpc::ClientContext context;
    SetDeadline(&context, 5);
    v1::ListResponse list;
    if (!stub_->List(&context, v1::ListRequest(), &list).ok()) return;
    for (const v1::Job& job : list.jobs()) {
      if (job.ended_unix_ms() != 0) continue;
      Cancel(job.id());
      AwaitEnd(job.id());
    }
  }

 protected:
  std::string directory_;
  Settings settings_;
  std::string metrics_listen_;  // none: its server takes seconds to stop
  std::unique_ptr<CoordinatorServer> server_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
  pid_t coordinator_ = 0;
};

inline std::vector<int> OneTo(int last) {
  std::vector<int> steps;
  for (int step = 1; step <= last; ++step) steps.push_back(step);
  return steps;
}

}  // namespace ela::coordinator
