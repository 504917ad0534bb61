// What `ela` prints, and with which code it ends, against a coordinator that answers from a script.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

#include "data/vocabulary.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/cli_testing.h"

namespace ela::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kJob = R"(
metadata: {name: demo}
spec:
  model: {preset: paper}
  data: {train: [{path: shards}], seq_len: 128}
  training: {steps: 10, global_batch_size: 4}
)";

class CliTest : public ::testing::Test {
 protected:
  CliTest() : server_(std::make_unique<FakeServer>(&coordinator_)) {
    coordinator_.job = MakeJob(v1::JOB_STATE_RUNNING);
    cli_.env["ELA_ADDRESS"] = server_->address();
    cli_.Type(kJob);
  }

  // Watch sends the job running, some progress, and then the job in this state.
  void JobEndsIn(v1::JobState state) {
    coordinator_.updates = {MakeUpdate(v1::JOB_STATE_RUNNING), Progress(520), MakeUpdate(state)};
    coordinator_.updates.back().mutable_job()->set_ended_unix_ms(1'700'000'090'000);
  }
  static v1::WatchUpdate Progress(int64_t step) {
    v1::WatchUpdate update;
    *update.mutable_progress() = MakeProgress(step);
    for (int64_t s = 1; s <= step; s += 10) {
      update.add_points()->set_step(s);
      update.mutable_points()->rbegin()->set_loss(7.6 - 4.0 * static_cast<double>(s) / 1000);
    }
    return update;
  }

  FakeCoordinator coordinator_;
  std::unique_ptr<FakeServer> server_;
  Cli cli_;
};

TEST_F(CliTest, SubmitPrintsTheIdAndSendsTheJobAsWritten) {
  const Outcome outcome =
      cli_.Run({"submit", "-f", "-", "--set", "training.steps=20", "--client-key", "k1"});
  EXPECT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(outcome.out, "j-0123456789ab\n");
  EXPECT_THAT(outcome.err, HasSubstr("ela watch j-0123456789ab"));
  EXPECT_EQ(coordinator_.submitted.client_key(), "k1");
  EXPECT_EQ(coordinator_.submitted.source_dir(), "/home/ada");
  EXPECT_EQ(coordinator_.submitted.job().spec().training().steps(), 20);
  EXPECT_FALSE(coordinator_.submitted.job().spec().model().has_vocab_size());
}

TEST_F(CliTest, ABadJobFileEndsWith2AndIsNeverSent) {
  const Outcome outcome = cli_.Run({"submit", "-f", "-", "--set", "model.moe.top_k=9"});
  EXPECT_EQ(outcome.code, kUsage);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr("spec.model.moe.top_k: 9 is more than num_experts 4"));
  EXPECT_FALSE(coordinator_.submitted.has_job());
  EXPECT_EQ(cli_.Run({"submit", "-f", "/nowhere/job.yaml"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"submit"}).code, kUsage);
}

TEST_F(CliTest, AFollowedJobEndsWithItsOwnCode) {
  JobEndsIn(v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(cli_.Run({"submit", "-f", "-", "--follow"}).code, kDone);
  JobEndsIn(v1::JOB_STATE_FAILED);
  EXPECT_EQ(cli_.Run({"watch", "demo"}).code, kJobFailed);
  JobEndsIn(v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(cli_.Run({"watch", "demo"}).code, kJobCancelled);
}

TEST_F(CliTest, WatchPrintsPlainLinesAwayFromATerminal) {
  JobEndsIn(v1::JOB_STATE_SUCCEEDED);
  const Outcome outcome = cli_.Run({"watch", "demo"});
  EXPECT_THAT(outcome.out, HasSubstr("running"));
  EXPECT_THAT(outcome.out, HasSubstr("demo succeeded after 1m 20s"));
  EXPECT_THAT(outcome.out, HasSubstr("run folder      /runs/j-0123456789ab"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b")));
}

TEST_F(CliTest, WatchDrawsOnATerminalAndRespectsNoColor) {
  JobEndsIn(v1::JOB_STATE_SUCCEEDED);
  cli_.is_terminal = true;
  EXPECT_THAT(cli_.Run({"watch", "demo"}).out, HasSubstr("\x1b[32mrunning"));
  cli_.env["NO_COLOR"] = "1";
  const Outcome plain = cli_.Run({"watch", "demo"});
  EXPECT_THAT(plain.out, Not(HasSubstr("\x1b[32m")));
  EXPECT_THAT(plain.out, HasSubstr("step 520/1,000"));
  EXPECT_THAT(plain.out, HasSubstr("┤"));
}

TEST_F(CliTest, AnotherCharacterSetGetsAsciiOnly) {
  JobEndsIn(v1::JOB_STATE_SUCCEEDED);
  cli_.is_terminal = true;
  cli_.env["LC_ALL"] = "C";
  EXPECT_THAT(cli_.Run({"watch", "demo"}).out, Not(HasSubstr("┤")));
}

TEST_F(CliTest, CtrlCDetachesWith130AndSaysHowToComeBack) {
  JobEndsIn(v1::JOB_STATE_RUNNING);
  coordinator_.stays_open = true;
  cli_.interrupted = true;
  const Outcome outcome = cli_.Run({"watch", "demo"});
  EXPECT_EQ(outcome.code, kDetached);
  EXPECT_THAT(outcome.err, HasSubstr("the job goes on. Watch it again: ela watch demo"));
}

TEST_F(CliTest, WaitEndsWith5WhenTheTimeIsUp) {
  coordinator_.updates = {MakeUpdate(v1::JOB_STATE_RUNNING)};
  coordinator_.stays_open = true;
  const Outcome outcome = cli_.Run({"wait", "demo", "--for", "completed", "--timeout", "300ms"});
  EXPECT_EQ(outcome.code, kTimedOut);
  EXPECT_THAT(outcome.err, HasSubstr("not completed, after 300ms"));
}

TEST_F(CliTest, WaitEndsWhenTheStateIsReached) {
  coordinator_.updates = {MakeUpdate(v1::JOB_STATE_RUNNING)};
  coordinator_.stays_open = true;
  EXPECT_EQ(cli_.Run({"wait", "demo", "--for", "running"}).code, kDone);
  JobEndsIn(v1::JOB_STATE_FAILED);
  coordinator_.stays_open = false;
  EXPECT_EQ(cli_.Run({"wait", "demo"}).code, kJobFailed);
  EXPECT_EQ(cli_.Run({"wait", "demo", "--for", "failed"}).code, kDone);
  EXPECT_EQ(cli_.Run({"wait", "demo", "--for", "ended"}).code, kDone);
  JobEndsIn(v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(cli_.Run({"wait", "demo", "--for", "paused"}).code, kFailed);
  EXPECT_EQ(cli_.Run({"wait", "demo", "--for", "lunch"}).code, kUsage);
}

TEST_F(CliTest, WatchGoesOnWhenTheCoordinatorComesBack) {
  coordinator_.updates = {MakeUpdate(v1::JOB_STATE_RUNNING)};
  coordinator_.stays_open = true;
  const int port = server_->port();
  Outcome outcome;
  std::thread watcher([&] { outcome = cli_.Run({"watch", "demo"}); });
  // The watcher has its answer when the stream is open; then the coordinator dies and another one
  // comes.
  while (!coordinator_.watched) std::this_thread::yield();
  server_.reset();
  FakeCoordinator again;
  again.updates = {MakeUpdate(v1::JOB_STATE_SUCCEEDED)};
  const FakeServer server(&again, port);
  watcher.join();
  EXPECT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("lost the coordinator"));
  EXPECT_EQ(outcome.err.find("lost"), outcome.err.rfind("lost"));
  EXPECT_THAT(outcome.err, HasSubstr("connected again"));
}

TEST_F(CliTest, NoCoordinatorEndsWith4AndSaysWhatToDo) {
  server_.reset();
  for (const std::vector<std::string>& words : {std::vector<std::string>{"list"},
                                                {"watch", "demo"},
                                                {"logs", "demo", "-f"},
                                                {"wait", "demo"}}) {
    const Outcome outcome = cli_.Run(words);
    EXPECT_EQ(outcome.code, kUnreachable);
    EXPECT_THAT(outcome.err, StartsWith("ela: cannot reach the coordinator at 127.0.0.1:"));
    EXPECT_THAT(outcome.err, HasSubstr("start ela-coordinator"));
  }
}

TEST_F(CliTest, CodesOfTheCoordinatorBecomeExitCodes) {
  const std::pair<grpc::StatusCode, int> kCases[] = {
      {grpc::StatusCode::NOT_FOUND, kNotFound},
      {grpc::StatusCode::PERMISSION_DENIED, kUnreachable},
      {grpc::StatusCode::UNAUTHENTICATED, kUnreachable},
      {grpc::StatusCode::INVALID_ARGUMENT, kUsage},
      {grpc::StatusCode::FAILED_PRECONDITION, kFailed},
      {grpc::StatusCode::ALREADY_EXISTS, kFailed}};
  for (const auto& [status, code] : kCases) {
    coordinator_.answer = grpc::Status(status, "first\nsecond");
    const Outcome outcome = cli_.Run({"cancel", "demo"});
    EXPECT_EQ(outcome.code, code);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, HasSubstr("first"));
  }
  coordinator_.answer = grpc::Status(grpc::StatusCode::NOT_FOUND, "no job \"demo\"");
  EXPECT_EQ(cli_.Run({"watch", "demo"}).code, kNotFound);
  EXPECT_EQ(cli_.Run({"logs", "demo"}).code, kNotFound);
}

TEST_F(CliTest, ListPrintsEveryPageInEveryFormat) {
  EXPECT_EQ(cli_.Run({"list", "-o", "name"}).out, "j-0123456789ab\nj-0123456789ab\n");
  EXPECT_THAT(cli_.Run({"list"}).out, StartsWith("ID              NAME  STATE"));
  EXPECT_THAT(cli_.Run({"list", "-o", "wide"}).out, HasSubstr("/runs/j-0123456789ab"));
  const auto json = nlohmann::json::parse(cli_.Run({"list", "-o", "json"}).out);
  EXPECT_EQ(json.at(1).at("state"), "running");
  EXPECT_THAT(cli_.Run({"list", "-o", "yaml"}).out, StartsWith("- id: j-0123456789ab\n"));
  EXPECT_EQ(cli_.Run({"list", "--limit", "1", "-o", "name"}).out, "j-0123456789ab\n");
  EXPECT_EQ(cli_.Run({"list", "--state", "lunch"}).code, kUsage);
}

TEST_F(CliTest, LogsPrintBytesAsTheyAre) {
  v1::LogChunk chunk;
  chunk.set_data("one\ntwo\n");
  coordinator_.chunks = {chunk};
  const Outcome outcome = cli_.Run({"logs", "demo", "--rank", "0"});
  EXPECT_EQ(outcome.code, kDone);
  EXPECT_EQ(outcome.out, "one\ntwo\n");
  EXPECT_EQ(cli_.Run({"logs", "demo", "--rank", "x"}).code, kUsage);
}

TEST_F(CliTest, FollowedLogsEndWithTheJob) {
  v1::LogChunk chunk;
  chunk.set_data("last\n");
  coordinator_.chunks = {chunk};
  coordinator_.job = MakeJob(v1::JOB_STATE_SUCCEEDED);
  coordinator_.job.add_attempts()->set_number(1);
  const Outcome outcome = cli_.Run({"logs", "demo", "-f"});
  EXPECT_EQ(outcome.code, kDone);
  EXPECT_EQ(outcome.out, "last\n");
}

TEST_F(CliTest, FollowedLogsGoOnWhereTheyStoppedWhenTheCoordinatorComesBack) {
  v1::LogChunk first, second;
  first.set_data("one\n");
  second.set_data("two\n");
  coordinator_.chunks = {first};
  coordinator_.stays_open = true;
  coordinator_.job.add_attempts()->set_number(1);
  const int port = server_->port();
  Outcome outcome;
  std::thread reader([&] { outcome = cli_.Run({"logs", "demo", "-f"}); });
  while (!coordinator_.watched) std::this_thread::yield();
  server_.reset();
  FakeCoordinator again;
  again.chunks = {first, second};  // the whole log again, and a line more
  again.job = MakeJob(v1::JOB_STATE_SUCCEEDED);
  again.job.add_attempts()->set_number(1);
  const FakeServer server(&again, port);
  reader.join();
  EXPECT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(outcome.out, "one\ntwo\n");
}

TEST_F(CliTest, EventsDescribeClusterAndVersionAnswer) {
  for (int i = 1; i <= 3; ++i) {
    v1::Event event;
    event.set_sequence(i);
    event.set_message("event " + std::to_string(i));
    coordinator_.events.push_back(event);
  }
  EXPECT_THAT(cli_.Run({"events", "demo"}).out, HasSubstr("event 3"));
  EXPECT_THAT(cli_.Run({"describe", "demo"}).out, HasSubstr("event 3"));
  EXPECT_THAT(cli_.Run({"cluster"}).out, HasSubstr("local"));
  const Outcome version = cli_.Run({"version"});
  EXPECT_EQ(version.code, kDone);
  EXPECT_THAT(version.out, HasSubstr("9.9.9"));
  server_.reset();
  const Outcome alone = cli_.Run({"version"});
  EXPECT_EQ(alone.code, kUnreachable);
  EXPECT_THAT(alone.out, StartsWith("ela "));
}

TEST_F(CliTest, ATokenTravelsAsABearerAndNeverInTheClear) {
  const std::string path = ::testing::TempDir() + "cli_token";
  std::ofstream(path) << "secret\n";
  EXPECT_EQ(cli_.Run({"get", "demo", "--token-file", path}).code, kDone);
  EXPECT_EQ(coordinator_.authorization, "Bearer secret");
  const Outcome far =
      cli_.Run({"get", "demo", "--token-file", path, "--address", "192.0.2.1:7070"});
  EXPECT_EQ(far.code, kUsage);
  EXPECT_THAT(far.err, HasSubstr("TLS is off"));
  EXPECT_EQ(cli_.Run({"get", "demo", "--ca", "/nowhere"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"get", "demo", "--cert", path}).code, kUsage);
  std::remove(path.c_str());
}

TEST_F(CliTest, ValidateWorksWithoutACoordinator) {
  server_.reset();
  const Outcome yaml = cli_.Run({"validate", "-f", "-"});
  EXPECT_EQ(yaml.code, kDone) << yaml.err;
  EXPECT_THAT(yaml.out, HasSubstr("vocab_size: 6400"));
  EXPECT_THAT(yaml.out, HasSubstr("path: /home/ada/shards"));
  EXPECT_THAT(yaml.err, HasSubstr("5,837,840 parameters"));
  EXPECT_THAT(yaml.err, HasSubstr("activations"));
  cli_.Type(kJob);
  const auto json = nlohmann::json::parse(cli_.Run({"validate", "-f", "-", "-o", "json"}).out);
  EXPECT_EQ(json.at("parameters"), 5'837'840);
  EXPECT_GT(json.at("bytes_per_rank").at("total"), 5'837'840 * 16);
}

TEST_F(CliTest, ShardsOfALargerVocabularyAreRefusedBeforeTheCoordinatorIsAsked) {
  const std::string prefix = ::testing::TempDir() + "cli_shards";
  data::Sidecar sidecar;
  sidecar.vocab_size = 9000;
  std::ofstream(prefix + ".json") << data::SidecarToJson(sidecar);
  const std::string set = "data.train=[{path: " + prefix + "}]";
  for (const char* command : {"submit", "validate"}) {
    cli_.Type(kJob);
    const Outcome outcome = cli_.Run({command, "-f", "-", "--set", set});
    EXPECT_EQ(outcome.code, kUsage);
    EXPECT_EQ(outcome.err, "ela: -: " + prefix +
                               ".json: built with a vocabulary of 9000, the model's vocab_size is "
                               "6400; set vocab_size to at least 9000\n");
  }
  EXPECT_FALSE(coordinator_.submitted.has_job());
  std::remove((prefix + ".json").c_str());
}

TEST_F(CliTest, SiblingsRunWithTheirArgumentsOrAreMissedClearly) {
  const Outcome outcome = cli_.Run({"data", "build", "--input", "x"});
  EXPECT_THAT(cli_.executed, ElementsAre("ela-data", "build", "--input", "x"));
  EXPECT_EQ(cli_.executed_path, "/nowhere/ela-data");
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("needs the program /nowhere/ela-data: No such file"));
}

TEST_F(CliTest, UsageErrorsEndWith2AndHelpWith0) {
  EXPECT_EQ(cli_.Run({"sumbit"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"list", "--ouput", "json"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"list", "--timeout", "soon"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"list", "--address", "here"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"completion", "fish"}).code, kUsage);
  EXPECT_EQ(cli_.Run({"--help"}).code, kDone);
  EXPECT_EQ(cli_.Run({}).code, kDone);
  EXPECT_THAT(cli_.Run({"watch", "--help"}).out, HasSubstr("ela watch JOB"));
}

}  // namespace
}  // namespace ela::cli
