// What a coordinator, a supervisor and mpirun that are killed must not do to a job.

#include <gmock/gmock.h>

#include "ela/v1/trainer.grpc.pb.h"
#include "tests/coordinator/service_testing.h"

namespace ela::coordinator {
namespace {

using testing::HasSubstr;

class FaultsTest : public ServiceTest {
 protected:
  pid_t MpirunOf(pid_t session) {
    pid_t found = 0;
    EXPECT_TRUE(Eventually([&] {
      for (const ProcessStat& process : ProcessesOfSession(session)) {
        if (process.parent == session && process.name.starts_with("mpirun")) found = process.pid;
      }
      return found != 0;
    }));
    return found;
  }
  std::string StandardError(const std::string& log) {
    const auto text = ReadFileIfExists(directory_ + "/" + log);
    return text.ok() && *text ? **text : "";
  }
  /// What a coordinator that refuses to start says; it must leave with 1.
  std::string RefusalOf(const std::string& state, std::vector<std::string> arguments) {
    std::filesystem::remove(directory_ + "/refused.log");
    const pid_t pid = SpawnCoordinator(std::move(arguments), "refused.log", state);
    int status = 0;
    waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    return StandardError("refused.log");
  }
};

TEST_F(FaultsTest, AKilledCoordinatorTakesTheRunningJobUpAgain) {
  StartCoordinator();
  JobOptions options;
  options.steps = 200;
  // Without a checkpoint: the scripted ranks, unlike real ones, wait in their steps for a commit.
  const std::string id = Submit({{"no-checkpoint", "yes"}}, options);
  AwaitStep(id, 10);
  const pid_t session = SessionOf(id, 1);
  KillCoordinator(SIGKILL);
  const std::vector<int> before = Steps(id);
  EXPECT_TRUE(Eventually([&] { return Steps(id).size() > before.size(); })) << "the ranks pause";
  StartCoordinator();
  AwaitStep(id, static_cast<int64_t>(Steps(id).size()));
  EXPECT_EQ(SessionOf(id, 1), session);
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.attempts_size(), 1);
  EXPECT_EQ(Steps(id), OneTo(200));
  ExpectWholeHistory(id);
}

TEST_F(FaultsTest, AJobThatEndedWithoutTheCoordinatorIsSeenAfterwards) {
  StartCoordinator();
  JobOptions options;
  options.steps = 30;
  // Without a checkpoint: nobody could give leave to commit one.
  const std::string id = Submit({{"no-checkpoint", "yes"}}, options);
  AwaitStep(id, 1);
  KillCoordinator(SIGKILL);
  EXPECT_TRUE(
      Eventually([&] { return std::filesystem::exists(AttemptDir(id, 1) + "/exit.json"); }));
  StartCoordinator();
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.attempts_size(), 1);
}

TEST_F(FaultsTest, AStoppedCoordinatorLeavesItsJobsRunning) {
  StartCoordinator();
  JobOptions options;
  options.steps = 150;
  const std::string id = Submit({}, options);
  AwaitStep(id, 5);
  KillCoordinator(SIGTERM);
  EXPECT_THAT(StandardError("coordinator.log"), HasSubstr("1 running jobs run on"));
  EXPECT_FALSE(ProcessesOfSession(SessionOf(id, 1)).empty());
  StartCoordinator();
  EXPECT_EQ(AwaitEnd(id).attempts_size(), 1);
}

TEST_F(FaultsTest, NoAcknowledgedSubmitIsLostInACrashLoop) {
  std::map<std::string, std::string> ids;  // client key -> job
  for (int round = 0; round < 4; ++round) {
    StartCoordinator();
    for (int i = 0; i < 10; ++i) {
      v1::SubmitRequest request = Request({{"step-ms", "1"}});
      request.set_client_key(absl::StrCat("key-", round * 5 + i));  // half of them known
      v1::SubmitResponse response;
      ASSERT_TRUE(TrySubmit(request, &response).ok());
      const auto [it, fresh] = ids.emplace(request.client_key(), response.job().id());
      EXPECT_EQ(response.existed(), !fresh);
      EXPECT_EQ(it->second, response.job().id());
    }
    KillCoordinator(SIGKILL);
  }
  StartCoordinator();
  grpc::ClientContext context;
  v1::ListResponse list;
  ASSERT_TRUE(stub_->List(&context, v1::ListRequest(), &list).ok());
  EXPECT_EQ(static_cast<size_t>(list.jobs_size()), ids.size());
  for (const auto& [key, id] : ids) {
    ExpectWholeHistory(id);
    EXPECT_TRUE(Cancel(id).ok() || Get(id).ended_unix_ms() != 0);
  }
}

TEST_F(FaultsTest, AKilledSupervisorLeavesNoOrphan) {
  StartServer();
  const std::string id = Submit({{"step-ms", "50"}});
  AwaitStep(id, 5);
  const pid_t session = SessionOf(id, 1);
  kill(session, SIGKILL);
  EXPECT_TRUE(Eventually([&] { return ProcessesOfSession(session).empty(); }));
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).outcome(), v1::OUTCOME_INFRA);
  EXPECT_THAT(job.attempts(0).reason(), HasSubstr("supervisor"));
}

TEST_F(FaultsTest, AKilledMpirunLeavesNoOrphan) {
  StartServer();
  const std::string id = Submit({{"step-ms", "50"}, {"deaf", "yes"}});
  AwaitStep(id, 5);
  const pid_t session = SessionOf(id, 1);
  kill(MpirunOf(session), SIGKILL);
  EXPECT_TRUE(Eventually([&] { return ProcessesOfSession(session).empty(); }));
  const v1::Job job = AwaitEnd(id);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).outcome(), v1::OUTCOME_INFRA);
  EXPECT_THAT(job.attempts(0).reason(), HasSubstr("mpirun was ended by signal 9"));
}

TEST_F(FaultsTest, ADamagedExitRecordIsNotBelieved) {
  StartServer();
  JobOptions options;
  options.steps = 100000;
  const std::string id = Submit({}, options);
  AwaitStep(id, 5);
  std::ofstream(AttemptDir(id, 1) + "/exit.json") << "{\"exit_code\": 0";
  AwaitStep(id, Get(id).progress().step() + 5);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);
}

TEST_F(FaultsTest, RefusalsAreOneClearLine) {
  StartCoordinator();
  EXPECT_THAT(RefusalOf("state", {"--listen", "127.0.0.1:0"}), HasSubstr("is in use by another"));
  const auto address = ReadFileIfExists(state_dir() + "/address");
  const std::string taken = (*address)->substr(0, (*address)->find('\n'));
  const std::string refusal = RefusalOf("other", {"--listen", taken, "--metrics-listen", ""});
  EXPECT_THAT(refusal, HasSubstr(taken + " cannot be listened on"));
  EXPECT_EQ(std::count(refusal.begin(), refusal.end(), '\n'), 1) << refusal;
  EXPECT_THAT(RefusalOf("other", {"--listen", "0.0.0.0:0"}),
              HasSubstr("no TLS and no authentication yet"));
}

TEST_F(FaultsTest, RefusesWhatIsNotOneLoopbackAddress) {
  for (const char* address : {"127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x"}) {
    EXPECT_THAT(RefusalOf("other", {"--listen", address}), HasSubstr("is not HOST:PORT"));
  }
  for (const char* address : {"127.0.0.1:0,0.0.0.0:0", "127.0.0.1.example:0"}) {
    EXPECT_THAT(RefusalOf("other", {"--listen", "127.0.0.1:0", "--metrics-listen", address}),
                HasSubstr("refusing to listen on"));
  }
}

TEST_F(FaultsTest, OnlyTheNewestAttemptWithItsTokenIsHeard) {
  StartServer();
  const std::string id = Submit({{"die", "1-13-kill"}, {"die-attempts", "1"}, {"step-ms", "100"}});
  AwaitStep(id, 2);
  auto reports = v1::TrainerReports::NewStub(
      grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
  const auto commit = [&](int attempt, const std::string& token) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    v1::CommitCheckpointRequest request;
    request.mutable_key()->set_job(id);
    request.mutable_key()->set_attempt(attempt);
    request.set_step(1);
    v1::CommitCheckpointResponse response;
    return reports->CommitCheckpoint(&context, request, &response).error_code();
  };
  const auto file = ReadFileIfExists(AttemptDir(id, 1) + "/token");
  const std::string token = (*file)->substr(0, (*file)->find('\n'));
  EXPECT_EQ(commit(1, token), grpc::StatusCode::OK);
  EXPECT_EQ(commit(1, ""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(commit(1, token + "0"), grpc::StatusCode::UNAUTHENTICATED);
  Await(id, [](const v1::Job& job) { return job.attempts_size() == 2; });
  EXPECT_EQ(commit(1, token), grpc::StatusCode::FAILED_PRECONDITION);
}

}  // namespace
}  // namespace ela::coordinator
