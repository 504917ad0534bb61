// Several ranks that share a prompt score, evaluate and generate what one rank does.
#include <gtest/gtest.h>

#include "proto/status_macros.h"
#include "tests/trainer/model/model_testing.h"
#include "trainer/inference/generate.h"
#include "trainer/inference/score.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.attention.decay=head", "model.attention.softmax_every=2"},
      {"model.residual=hyper_link", "model.memory_lobe.enabled=true", "model.moe.label_bias=inner"},
      {"model.attention.kernel=sum_squared", "model.attention.softmax_every=1"},
      {"model.attention.kernel=modulated_dot", "model.memory_lobe.enabled=true"},
  };
  return models;
}

std::vector<int32_t> Prompt(int64_t length) {
  return RandomDocuments(length, {{0}}, /*vocab=*/31, /*seed=*/4).ids;
}

absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const std::vector<std::string>& sets,
                                                  Communicator* world) {
  return LoadedModel::Create(TinyJob(sets), WideValues(2), {.world = world});
}

GenerateOptions Options() {
  GenerateOptions options;
  options.max_tokens = 12;
  options.samples = 2;
  options.sampler.temperature = 0.8;
  return options;
}

bool GoOn(int64_t, int32_t) { return true; }

TEST(ShardedInference, ScoresWhatOneRankScores) {
  for (const std::vector<std::string>& sets : Models()) {
    for (int64_t length : {2, 3, 70, 131}) {
      const auto alone = ScoreTokens(Load(sets, nullptr)->get(), Prompt(length));
      ASSERT_TRUE(alone.ok());
      for (int ranks : {2, 3, 4}) {
        const absl::Status status = RunLocalRanks(ranks, [&](Communicator& world) -> absl::Status {
          ELA_ASSIGN_OR_RETURN(const auto model, Load(sets, &world));
          ELA_ASSIGN_OR_RETURN(const Score score, ScoreTokens(model.get(), Prompt(length)));
          EXPECT_LE(RelativeDistance(score.logprobs, alone->logprobs), 1e-5) << length;
          EXPECT_NEAR(score.loss, alone->loss, 1e-5 * alone->loss);
          return absl::OkStatus();
        });
        EXPECT_EQ(status, absl::OkStatus());
      }
    }
  }
}

TEST(ShardedInference, GeneratesWhatOneRankGenerates) {
  for (const std::vector<std::string>& sets : Models()) {
    for (int64_t length : {1, 3, 70, 131}) {
      const auto alone = Generate(Load(sets, nullptr)->get(), Prompt(length), Options(), GoOn);
      ASSERT_TRUE(alone.ok());
      for (int ranks : {2, 3, 4}) {
        const absl::Status status = RunLocalRanks(ranks, [&](Communicator& world) -> absl::Status {
          ELA_ASSIGN_OR_RETURN(const auto model, Load(sets, &world));
          ELA_ASSIGN_OR_RETURN(const Generation generation,
                               Generate(model.get(), Prompt(length), Options(), GoOn));
          if (!model->last_shard()) return absl::OkStatus();
          EXPECT_EQ(generation.tokens, alone->tokens) << length << " tokens, " << ranks << " ranks";
          EXPECT_EQ(generation.state_bytes, alone->state_bytes);
          EXPECT_EQ(generation.cache_bytes, alone->cache_bytes);
          return absl::OkStatus();
        });
        EXPECT_EQ(status, absl::OkStatus());
      }
    }
  }
}

TEST(Generate, ReadsThePromptOnceForAllSamples) {
  for (const std::vector<std::string>& sets : Models()) {
    GenerateOptions options = Options();
    options.sampler.temperature = 0;
    size_t one_peak = 0;
    std::vector<int32_t> one;
    for (const int64_t samples : {1, 8}) {
      options.samples = samples;
      const auto model = Load(sets, nullptr);
      ASSERT_TRUE(model.ok());
      const auto generation = Generate(model->get(), Prompt(70), options, GoOn);
      ASSERT_TRUE(generation.ok());
      const size_t peak = (*model)->context().saved->peak_bytes();
      if (samples == 1) one = generation->tokens[0], one_peak = peak;
      EXPECT_EQ(peak, one_peak) << "activations of the prompt";
      for (const auto& tokens : generation->tokens) EXPECT_EQ(tokens, one);
    }
  }
}

TEST(ShardedInference, GivesTheSameErrorOnEveryRank) {
  const absl::Status status = RunLocalRanks(3, [&](Communicator& world) -> absl::Status {
    ELA_ASSIGN_OR_RETURN(const auto model, Load(Models()[0], &world));
    EXPECT_TRUE(absl::IsInvalidArgument(ScoreTokens(model.get(), {1, 31}).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(ScoreTokens(model.get(), {1}).status()));
    EXPECT_TRUE(absl::IsNotFound(LoadedModel::Load("/nowhere", "", {.world = &world}).status()));
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

}  // namespace
}  // namespace ela::trainer
