// Whole runs of the trainer in a test: on ranks as threads, over real shards, in a folder of their
// own.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "data/shards/shard_writer.h"
#include "tests/checkpoints/test_folder.h"
#include "tests/trainer/loop/training_testing.h"
#include "trainer/inference/score.h"
#include "trainer/loop/trainer.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {

inline constexpr int64_t kVocab = 31;

/// A plain sequence of numbers below 2^31.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : h_(seed) {}
  uint64_t operator()() { return (h_ = h_ * 6364136223846793005u + 1442695040888963407u) >> 33; }

 private:
  uint64_t h_;
};

inline void WriteShards(const std::string& prefix,
                        const std::vector<std::vector<int32_t>>& documents) {
  auto writer = data::ShardWriter::Create(
      {.prefix = prefix, .vocab_size = kVocab, .tokenizer_hash = "", .end_of_document = 1});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const std::vector<int32_t>& ids : documents) {
    ASSERT_TRUE((*writer)->Add(ids, 4 * static_cast<int64_t>(ids.size())).ok());
  }
  ASSERT_TRUE((*writer)->Seal().ok());
}

/// Documents of 5 to 40 tokens that follow a rule with exceptions.
inline std::vector<std::vector<int32_t>> RuledDocuments(uint64_t seed, int count) {
  std::vector<std::vector<int32_t>> documents;
  Numbers next(seed);
  for (int d = 0; d < count; ++d) {
    std::vector<int32_t> ids = {static_cast<int32_t>(next() % kVocab)};
    for (uint64_t n = 4 + next() % 36; n > 0; --n) {
      const uint64_t ruled = 5 * static_cast<uint64_t>(ids.back()) + 3;
      ids.push_back(static_cast<int32_t>((next() % 7 != 0 ? ruled : next()) % kVocab));
    }
    documents.push_back(std::move(ids));
  }
  return documents;
}

class TrainerRun : public testing::Test {
 protected:
  TrainerRun() {
    WriteShards(folder_.path("train"), RuledDocuments(1, 200));
    WriteShards(folder_.path("held_out"), RuledDocuments(2, 60));
  }

  void SetJob(std::vector<std::string> sets) {
    sets.insert(sets.begin(),
                {"data.train=[{path: " + folder_.path("train") + "}]", "training.steps=12",
                 "data.validation=" + folder_.path("held_out"), "training.eval_batches=3"});
    job_ = TrainingJobWith(sets);
  }

  TrainerOptions Options() const {
    TrainerOptions options;
    options.run_dir = folder_.path("run");
    options.metrics_address = "";
    options.progress = false;
    options.stop_requested = at_step_;
    return options;
  }

  ExitReport Train(const std::vector<std::string>& sets, const std::string& fault = "") {
    SetJob(sets);
    const v1::ParallelismSpec& mesh = job_.spec().parallelism();
    ExitReport report;
    const absl::Status status = RunLocalRanks(
        static_cast<int>(mesh.data() * mesh.sequence()), [&](Communicator& world) -> absl::Status {
          TrainerOptions options = Options();
          options.fault = fault;
          const ExitReport mine = Trainer(job_, options, &world).Run();
          if (world.rank() == 0) report = mine;
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    ReadMetrics();
    return report;
  }

  void ReadMetrics() {
    steps_.clear();
    evals_.clear();
    std::ifstream in(folder_.path("run/metrics.jsonl"));
    for (std::string line; std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line);
      (json.contains("eval_loss") ? evals_ : steps_).push_back(json);
    }
  }

  /// From the first step on no shard can be written, whoever runs this. Returns what is in the way.
  std::string BlockCheckpoints(bool stop) {
    const std::string steps = folder_.path("run/checkpoints/steps");
    at_step_ = [steps, stop, once = std::make_shared<std::once_flag>()] {
      std::call_once(*once, [&] {
        std::filesystem::remove(steps);
        std::ofstream(steps) << "no folder";
      });
      return stop;
    };
    return steps;
  }

  v1::TrainerState State() const {
    const auto reader = checkpoints::OpenCheckpoint(folder_.path("run/checkpoints"));
    EXPECT_TRUE(reader.ok()) << reader.status();
    return reader.ok() ? (*reader)->manifest().state() : v1::TrainerState();
  }

  std::string Log() const {
    std::ifstream in(folder_.path("run/logs/rank-0.log"));
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }

  /// What `ela model eval` says of the newest checkpoint over as many sequences.
  HeldOutLoss EvaluateCheckpoint() const {
    auto model = LoadedModel::Load(folder_.path("run"), "", {});
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return {};
    const v1::TrainingSpec& t = job_.spec().training();
    auto loss = EvaluateShards(model->get(), folder_.path("held_out"), job_.spec().data().seq_len(),
                               t.eval_batches() * t.global_batch_size(), nullptr);
    EXPECT_TRUE(loss.ok()) << loss.status();
    return loss.ok() ? *loss : HeldOutLoss();
  }

  const checkpoints::TestFolder folder_{checkpoints::FastFolder()};
  v1::TrainingJob job_;
  std::vector<nlohmann::json> steps_, evals_;  // lines of metrics.jsonl
  /// Asked by every rank in every step: whether to stop.
  std::function<bool()> at_step_ = [] { return false; };
};

}  // namespace ela::trainer
