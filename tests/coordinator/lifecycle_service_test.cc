// Jobs through the whole coordinator: submitted, run, failed, restarted, stopped.

#include <gmock/gmock.h>

#include "coordinator/outcome.h"
#include "tests/coordinator/service_testing.h"

namespace ela::coordinator {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::MatchesRegex;

TEST_F(ServiceTest, RunsAJobToTheEnd) {
  StartServer();
  const std::string id = Submit({});
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.attempts_size(), 1);
  EXPECT_EQ(job.attempts(0).outcome(), v1::OUTCOME_OK);
  EXPECT_EQ(job.progress().step(), 30);
  EXPECT_EQ(job.progress().last_checkpoint_step(), 30);
  EXPECT_EQ(Steps(id), OneTo(30));
  ExpectWholeHistory(id);
}

TEST_F(ServiceTest, TheSameSubmitTwiceIsOneJob) {
  StartServer();
  v1::SubmitRequest request = Request({});
  request.set_client_key("key-1");
  v1::SubmitResponse first, second;
  EXPECT_TRUE(TrySubmit(request, &first).ok());
  EXPECT_TRUE(TrySubmit(request, &second).ok());
  EXPECT_EQ(first.job().id(), second.job().id());
  EXPECT_FALSE(first.existed());
  EXPECT_TRUE(second.existed());
  request.mutable_job()->mutable_spec()->mutable_training()->set_steps(31);
  EXPECT_EQ(TrySubmit(request, &second).error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(ServiceTest, RefusesAJobThatCannotRunAndSaysWhy) {
  StartServer();
  JobOptions options;
  options.ranks = 3;
  v1::SubmitRequest request = Request({}, options);
  request.mutable_job()->mutable_spec()->mutable_tokenizer()->set_path("nowhere.model");
  request.mutable_job()->mutable_spec()->mutable_data()->mutable_train(0)->set_path("no-shards");
  v1::SubmitResponse response;
  const grpc::Status status = TrySubmit(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("nowhere.model"));
  EXPECT_THAT(status.error_message(), HasSubstr("no-shards.bin"));
  EXPECT_THAT(status.error_message(), HasSubstr("needs 3 slots, this machine has 2"));
}

TEST_F(ServiceTest, AKilledRankCostsAtMostOneCheckpointInterval) {
  StartServer();
  const std::string id = Submit({{"die", "1-13-kill"}, {"die-attempts", "1"}});
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).outcome(), v1::OUTCOME_INFRA);
  EXPECT_EQ(job.attempts(0).failed_rank(), 1);
  EXPECT_EQ(job.attempts(0).signal(), SIGKILL);
  EXPECT_GE(job.attempts(1).first_step(), 5);
  EXPECT_EQ(Steps(id), OneTo(30));
  ExpectWholeHistory(id);
}

struct Death {
  const char* how;
  v1::Outcome outcome;
  const char* reason;
};
class DeathTest : public ServiceTest, public testing::WithParamInterface<Death> {};

TEST_P(DeathTest, IsClassified) {
  StartServer();
  JobOptions options;
  options.max_failures = 0;
  const v1::Job job = AwaitEnd(Submit({{"die", absl::StrCat("1-4-", GetParam().how)}}, options));
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  ASSERT_EQ(job.attempts_size(), 1) << job.attempts(0).ShortDebugString();
  EXPECT_EQ(job.attempts(0).outcome(), GetParam().outcome);
  EXPECT_EQ(job.attempts(0).failed_rank(), 1);
  EXPECT_THAT(job.attempts(0).reason(), HasSubstr(GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    Ranks, DeathTest,
    testing::Values(Death{"kill", v1::OUTCOME_INFRA, "rank 1 was ended by signal 9"},
                    Death{"segv", v1::OUTCOME_INFRA, "rank 1 was ended by signal 11"},
                    Death{"vanish", v1::OUTCOME_INFRA, "exit code 7"},
                    Death{"exit7", v1::OUTCOME_INFRA, "rank 1: as the script says"},
                    Death{"full", v1::OUTCOME_DISK_FULL, "rank 1: no space"},
                    Death{"exit93", v1::OUTCOME_USER_ERROR, "rank 1: as the script says"}),
    [](const auto& info) { return std::string(info.param.how); });

TEST_F(ServiceTest, NeverRetriesAUserError) {
  StartServer();
  const v1::Job job = AwaitEnd(Submit({{"die", "0-2-exit93"}}));
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(job.attempts_size(), 1);
}

TEST_F(ServiceTest, TheSameErrorThriceWithoutProgressEndsTheJob) {
  StartServer();
  JobOptions options;
  options.max_failures = 10;
  const v1::Job job = AwaitEnd(Submit({{"die", "0-3-exit7"}, {"no-checkpoint", "yes"}}, options));
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(job.attempts_size(), 3);
  EXPECT_THAT(job.reason(), HasSubstr("the same error in 3 attempts"));
}

TEST_F(ServiceTest, AStoppedRankIsAHangAndTheJobGoesOn) {
  settings_.hang_floor_ms = 1'500;
  settings_.slow_phase_ms = 10'000;  // the last that was heard may be of the checkpoint of step 15
  StartServer();
  const std::string id = Submit({{"die", "0-20-stop"}, {"die-attempts", "1"}});
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).outcome(), v1::OUTCOME_HANG);
  EXPECT_TRUE(std::filesystem::exists(AttemptDir(id, 1) + "/hang.txt"));
  ExpectWholeHistory(id);
}

TEST_F(ServiceTest, CancelEndsAJobThatDoesNotListen) {
  StartServer();
  JobOptions options;
  options.steps = 100000;
  const std::string id = Submit({{"deaf", "yes"}}, options);
  AwaitStep(id, 2);
  const pid_t session = SessionOf(id, 1);
  EXPECT_TRUE(Cancel(id).ok());
  EXPECT_TRUE(Cancel(id).ok());
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(job.progress().eta_seconds(), 0);
  EXPECT_TRUE(Eventually([&] { return ProcessesOfSession(session).empty(); }));
  EXPECT_EQ(Pause(id).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Resume(id).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  ExpectWholeHistory(id);
}

TEST_F(ServiceTest, PauseWritesACheckpointAndResumeGoesOnFromIt) {
  StartServer();
  JobOptions options;
  options.checkpoint_every = 0;
  options.steps = 60;
  const std::string id = Submit({}, options);
  AwaitStep(id, 5);
  EXPECT_TRUE(Pause(id).ok());
  const v1::Job paused = AwaitState(id, v1::JOB_STATE_PAUSED);
  EXPECT_EQ(paused.attempts(0).outcome(), v1::OUTCOME_PREEMPTED);
  EXPECT_GE(paused.progress().last_checkpoint_step(), 5);
  EXPECT_TRUE(Resume(id).ok());
  const v1::Job job = AwaitEnd(id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.attempts(1).first_step(), paused.progress().last_checkpoint_step());
  EXPECT_EQ(Steps(id), OneTo(60));
  ExpectWholeHistory(id);
}

TEST_F(ServiceTest, AStopWithoutItsCheckpointSaysWhatIsLostAndWhy) {
  settings_.pause_deadline_ms = 3'000;
  StartServer();
  JobOptions options;
  options.steps = 100000;
  const std::string id = Submit({{"disk-full", "6"}}, options);
  AwaitStep(id, 8);
  EXPECT_TRUE(Pause(id).ok());
  const v1::Job paused = AwaitState(id, v1::JOB_STATE_PAUSED);
  EXPECT_THAT(paused.reason(),
              MatchesRegex("paused without a last checkpoint: none in time \\(checkpoint failing "
                           "since step [0-9]+: no space for it\\); a resume goes on from step 5"));
  EXPECT_EQ(paused.attempts(0).reason(), paused.reason());
  options.time_limit = "1s";
  options.checkpoint_every = 0;
  const v1::Job ended = AwaitEnd(Submit({{"disk-full", "1"}}, options));
  EXPECT_EQ(ended.attempts(0).outcome(), v1::OUTCOME_TIMEOUT);
  EXPECT_THAT(ended.reason(),
              AllOf(HasSubstr("time_limit of 1s is reached; ended without a last checkpoint"),
                    HasSubstr("no space for it"), EndsWith("; there is no checkpoint")));
  ExpectWholeHistory(id);
}

TEST_F(ServiceTest, CheckpointsThatFailAreToldOnceAndTheJobGoesOn) {
  StartServer();
  JobOptions options;
  options.steps = 100000;
  const std::string id = Submit({{"disk-full", "8"}}, options);
  const v1::Job job = Await(id, [](const v1::Job& now) {  // 10, 15 and 20 are lost
    return now.progress().step() > 20 && now.progress().checkpoint_failing_since_step() == 10;
  });
  EXPECT_EQ(job.state(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(job.reason(), "checkpoint failing since step 10: no space for it");
  EXPECT_EQ(job.progress().last_checkpoint_step(), 5);
  std::vector<std::string> told;
  for (const v1::Event& event : Events(id)) {
    if (event.type() == "checkpoint") told.push_back(event.message());
  }
  EXPECT_THAT(told, ElementsAre("checkpoint of step 5, 100 B",
                                "checkpoint failing since step 10: no space for it"));
  ExpectWholeHistory(id);
}

TEST(Outcome, APauseThatCrashesIsPausedAndSaysSo) {
  ExitRecord exit;
  exit.exit_code = 1;
  exit.ranks.push_back({.rank = 1, .outcome = "error", .exit_code = 1, .reason = "no answer"});
  const AttemptEnd end = Classify(exit, v1::STOP_KIND_PAUSE, "paused by the user");
  EXPECT_EQ(end.outcome, v1::OUTCOME_INFRA);
  EXPECT_EQ(end.reason, "paused without a last checkpoint: rank 1: no answer");
  EXPECT_TRUE(end.without_checkpoint);
}

// mpirun asks the other ranks to stop, and they may be quick to.
TEST(Outcome, ARankThatVanishedIsAFailureThoughTheOthersStoppedOnRequest) {
  ExitRecord exit;
  exit.exit_code = 7;
  exit.failed_rank = 1;
  exit.ranks.push_back({.rank = 0, .outcome = "preempted", .exit_code = 75});
  const AttemptEnd end = Classify(exit, v1::STOP_KIND_NONE, "");
  EXPECT_EQ(end.outcome, v1::OUTCOME_INFRA);
  EXPECT_EQ(end.reason, "rank 1 left with exit code 7");
}

TEST(Outcome, RanksThatStoppedOnRequestWerePreempted) {
  ExitRecord exit;
  exit.ranks.push_back({.rank = 0, .outcome = "preempted", .exit_code = 75});
  for (const int failed_rank : {-1, 0}) {
    exit.failed_rank = failed_rank;
    exit.exit_code = 1;
    EXPECT_EQ(Classify(exit, v1::STOP_KIND_NONE, "").outcome, v1::OUTCOME_PREEMPTED);
  }
  exit.failed_rank = 1;
  exit.exit_code = 75;
  EXPECT_EQ(Classify(exit, v1::STOP_KIND_NONE, "").outcome, v1::OUTCOME_PREEMPTED);
}

TEST_F(ServiceTest, TheTimeLimitEndsTheJobAfterACheckpoint) {
  StartServer();
  JobOptions options;
  options.checkpoint_every = 0;
  options.steps = 100000;
  options.time_limit = "1500ms";
  const v1::Job job = AwaitEnd(Submit({}, options));
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(job.attempts(0).outcome(), v1::OUTCOME_TIMEOUT);
  EXPECT_GT(job.progress().last_checkpoint_step(), 0);
}

TEST_F(ServiceTest, AJobWithoutSlotsSaysBehindWhomItWaits) {
  StartServer();
  JobOptions options;
  options.steps = 100000;
  const std::string first = Submit({}, options);
  AwaitStep(first, 1);
  const std::string second = Submit({});
  options.name = "urgent";
  options.priority = 5;
  options.steps = 5;
  const std::string urgent = Submit({}, options);
  const v1::Job waiting = Await(
      second, [&](const v1::Job& job) { return job.reason().find(urgent) != std::string::npos; });
  EXPECT_THAT(waiting.reason(), HasSubstr("waits for 2 slots, 0 of 2 are free"));
  EXPECT_THAT(Get(urgent).reason(), HasSubstr("behind " + first));
  EXPECT_TRUE(Cancel(first).ok());
  EXPECT_LE(AwaitEnd(urgent).started_unix_ms(), AwaitEnd(second).started_unix_ms());
}

TEST_F(ServiceTest, CancelOfAWaitingJobIsImmediate) {
  StartServer();
  JobOptions options;
  options.steps = 100000;
  const std::string first = Submit({}, options);
  const std::string second = Submit({});
  EXPECT_TRUE(Pause(second).ok());
  EXPECT_EQ(Get(second).state(), v1::JOB_STATE_PAUSED);
  EXPECT_TRUE(Resume(second).ok());
  EXPECT_TRUE(Cancel(second).ok());
  EXPECT_EQ(Get(second).state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(Get(second).attempts_size(), 0);
}

}  // namespace
}  // namespace ela::coordinator
