// Whole runs of the trainer on ranks as threads, over real shards: what it writes down, what it
// does about spikes and numbers that are not finite, and that its evaluations can be repeated.
#include "trainer/loop/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <thread>

#include "checkpoints/export/exported_folder.h"
#include "proto/status_macros.h"
#include "tests/trainer/loop/trainer_run.h"

namespace ela::trainer {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST_F(TrainerRun, EvaluatesAsACheckpointOfTheStepIsEvaluated) {
  const std::vector<std::string> variants[] = {
      {"parallelism.sequence=2", "parallelism.expert=2"},
      {"data.document_mask=false", "training.micro_batch_size=3"},
      {"training.objective=masked_token", "model.attention.decay=none", "training.seed=77",
       "model.memory_lobe.mode=bidirectional", "parallelism.data=2"}};
  for (const std::vector<std::string>& sets : variants) {
    SCOPED_TRACE(sets[0]);
    std::filesystem::remove_all(folder_.path("run"));
    std::vector<std::string> all = sets;
    all.push_back("training.eval_every=6");
    ASSERT_EQ(Train(all).code, kExitDone);
    ASSERT_EQ(evals_.size(), 2u);
    const HeldOutLoss again = EvaluateCheckpoint();
    EXPECT_EQ(evals_[1]["eval_tokens"], again.tokens);
    EXPECT_NEAR(evals_[1]["eval_loss"].get<double>() / again.loss, 1, 1e-6);
    EXPECT_NE(evals_[0]["eval_loss"], evals_[1]["eval_loss"]);
  }
}

TEST_F(TrainerRun, SkipsTheUpdatesThatTheSpikeGuardWouldOnTheRecordedCurve) {
  ASSERT_EQ(Train({"training.steps=40", "optimizer.lr=1e-4",
                   "training.spike_guard={z_score: 0.5, window: 8}", "parallelism.data=2"})
                .code,
            kExitDone);
  SpikeGuard guard{.z_score = 0.5, .size = 8};
  int64_t spikes = 0;
  for (const nlohmann::json& step : steps_) {
    spikes += guard.IsSpike(step["loss"]);
    guard.Add(step["loss"]);
  }
  EXPECT_EQ(steps_.size(), 40u);
  EXPECT_GT(spikes, 0);
  EXPECT_LT(spikes, 20);
  EXPECT_EQ(State().skipped_steps(), spikes);
  EXPECT_EQ(State().optimizer_steps(), 40 - spikes);
  EXPECT_THAT(Log(), HasSubstr("is a spike, no update"));
}

TEST_F(TrainerRun, RewindsToTheLastCheckpointAndGoesOnWithLaterData) {
  const std::vector<std::string> sets = {"training.on_nan=rewind", "checkpoint.every_steps=3",
                                         "parallelism.sequence=2"};
  ASSERT_EQ(Train(sets).code, kExitDone);
  const std::vector<nlohmann::json> whole = steps_;
  std::filesystem::remove_all(folder_.path("run"));
  ASSERT_EQ(Train(sets, "nan:1:8").code, kExitDone);
  ASSERT_EQ(steps_.size(), 12u);
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(steps_[i]["step"], i + 1);
    EXPECT_EQ(steps_[i]["loss"] == whole[i]["loss"], i < 6) << i + 1;
  }
  EXPECT_EQ(State().skipped_steps(), 2);  // 7 again and 8, from the checkpoint of step 6
  EXPECT_EQ(State().consumed_samples(), (12 + 2) * job_.spec().training().global_batch_size());
}

TEST_F(TrainerRun, StopsOrSkipsWhenANumberIsNotFinite) {
  const ExitReport stopped = Train({"training.on_nan=stop"}, "nan:0:5");
  EXPECT_EQ(stopped.code, kExitNeverRetry);
  EXPECT_THAT(stopped.reason, HasSubstr("step 5"));
  EXPECT_EQ(State().step(), 4);
  std::filesystem::remove_all(folder_.path("run"));
  EXPECT_EQ(Train({"training.on_nan=skip", "parallelism.data=2"}, "nan:1:5").code, kExitDone);
  EXPECT_EQ(State().skipped_steps(), 1);
  EXPECT_EQ(State().optimizer_steps(), 11);
}

TEST_F(TrainerRun, WaitsForSpaceRatherThanLoseItsLastCheckpoint) {
  const std::string in_the_way = BlockCheckpoints(/*stop=*/false);
  std::atomic<bool> over{false};
  std::thread repair([&] {
    while (!over && Log().find("is tried again") == std::string::npos) poll(nullptr, 0, 10);
    std::filesystem::remove(in_the_way);
  });
  const ExitReport report = Train({"checkpoint.every_steps=5", "parallelism.data=2"});
  over = true;
  repair.join();
  EXPECT_EQ(report.code, kExitDone) << report.reason;
  EXPECT_EQ(State().step(), 12);
  EXPECT_EQ(steps_.size(), 12u);
  EXPECT_THAT(Log(), HasSubstr("checkpoint lost: rank 0: "));
}

TEST_F(TrainerRun, WhoStopsItByHandNeedNotWait) {
  BlockCheckpoints(/*stop=*/true);
  const ExitReport report = Train({"parallelism.data=2"});
  EXPECT_NE(report.code, kExitDone);
  EXPECT_NE(report.code, kExitStopped);
  EXPECT_THAT(report.reason, HasSubstr("checkpoints/steps"));
}

TEST_F(TrainerRun, FollowsEveryLearningRateSchedule) {
  for (const char* type : {"constant", "linear", "cosine", "wsd"}) {
    SCOPED_TRACE(type);
    std::filesystem::remove_all(folder_.path("run"));
    ASSERT_EQ(Train({std::string("lr_scheduler.type=") + type, "training.steps=20"}).code,
              kExitDone);
    const LrSchedule schedule = MakeLrSchedule(job_.spec());
    for (const nlohmann::json& step : steps_) {
      EXPECT_DOUBLE_EQ(step["lr"], LearningRate(schedule, step["step"]));
    }
    EXPECT_LT(steps_.back()["loss"], steps_.front()["loss"]);
  }
}

TEST_F(TrainerRun, LabelsEveryLossOfAModelThatSeesItsTargets) {
  const char* const bidirectional = "model.memory_lobe.mode=bidirectional";
  const char* const eval = "training.eval_every=30";
  ASSERT_EQ(Train({bidirectional, "model.memory_lobe.allow_future_leak=true", eval,
                   "training.spike_guard={z_score: 0.2, window: 8}", "training.steps=30",
                   "optimizer.lr=1e-4"})
                .code,
            kExitDone);
  for (const auto* lines : {&steps_, &evals_}) {
    EXPECT_FALSE(lines->empty());
    for (const nlohmann::json& line : *lines) EXPECT_EQ(line["leaks_future"], true) << line;
  }
  std::istringstream log(Log());
  int losses = 0;
  for (std::string line; std::getline(log, line);) {
    if (line.find("loss ") == std::string::npos) continue;
    EXPECT_THAT(line, HasSubstr("leak"));
    ++losses;
  }
  EXPECT_GE(losses, 4);  // of the first and last step, a spike, the evaluation
  EXPECT_TRUE((*LoadedModel::Load(folder_.path("run"), "", {}))->leaks_future());
}

TEST_F(TrainerRun, LabelsNoLossOfASoundModel) {
  ASSERT_EQ(Train({"model.memory_lobe.mode=bidirectional", "training.objective=masked_token",
                   "model.attention.decay=none", "training.eval_every=12"})
                .code,
            kExitDone);
  for (const auto* lines : {&steps_, &evals_}) {
    for (const nlohmann::json& line : *lines) EXPECT_FALSE(line.contains("leaks_future"));
  }
  EXPECT_THAT(Log(), Not(HasSubstr("leak")));
  EXPECT_FALSE((*LoadedModel::Load(folder_.path("run"), "", {}))->leaks_future());
}

TEST_F(TrainerRun, TakesAnExportedLobeIntoATrainedModel) {
  const std::string lobe = "model.memory_lobe.norm=true";
  ASSERT_EQ(Train({lobe}).code, kExitDone);
  std::filesystem::rename(folder_.path("run"), folder_.path("base"));
  checkpoints::ExportOptions options;
  options.to = folder_.path("lobe");
  options.lobe_only = true;
  options.tokenizer = false;
  const auto base = checkpoints::OpenCheckpoint(folder_.path("base"));
  ASSERT_TRUE(base.ok() && checkpoints::ExportStep(base->get(), options).ok());
  const std::vector<std::string> alone = {lobe, "training.train_only=memory_lobe"};
  const auto from = [&](const std::string& name) {
    return std::vector<std::string>{alone[0], alone[1], "training.init_from=" + folder_.path(name)};
  };
  const ExitReport refused = Train(from("lobe"));
  EXPECT_EQ(refused.code, kExitNeverRetry);
  EXPECT_THAT(refused.reason, HasSubstr("ela checkpoint import MODEL --lobe"));
  std::filesystem::remove_all(folder_.path("run"));
  ASSERT_TRUE(checkpoints::ImportStep({.from = folder_.path("base"),
                                       .lobe = folder_.path("lobe"),
                                       .to = folder_.path("joined")})
                  .ok());
  EXPECT_EQ(Train(from("joined")).code, kExitDone);
}

TEST_F(TrainerRun, TrainsALobeAloneOverAnotherRunsModel) {
  const std::vector<std::string> sizes = {"model.memory_lobe.norm=true"};
  ASSERT_EQ(Train(sizes).code, kExitDone);
  std::filesystem::rename(folder_.path("run"), folder_.path("base"));
  ASSERT_EQ(Train({sizes[0], "training.train_only=memory_lobe", "parallelism.data=2",
                   "training.init_from=" + folder_.path("base")})
                .code,
            kExitDone);
  const auto base = checkpoints::OpenCheckpoint(folder_.path("base"));
  const auto after = checkpoints::OpenCheckpoint(folder_.path("run"));
  ASSERT_TRUE(base.ok() && after.ok());
  for (const v1::TensorRecord& tensor : (*after)->manifest().tensors()) {
    const bool lobe = tensor.name().find(".lobe.") != std::string::npos;
    EXPECT_TRUE(lobe || tensor.name().rfind("model/", 0) == 0) << tensor.name();
    if (tensor.name().rfind("model/", 0) != 0) continue;
    int64_t numel = 1;
    for (const int64_t extent : tensor.shape()) numel *= extent;
    std::vector<float> was(static_cast<size_t>(numel)), is(was);
    ASSERT_TRUE((*base)->Read(tensor.name(), 0, numel, was.data()).ok());
    ASSERT_TRUE((*after)->Read(tensor.name(), 0, numel, is.data()).ok());
    EXPECT_EQ(was == is, !lobe) << tensor.name();
  }
}

}  // namespace
}  // namespace ela::trainer
