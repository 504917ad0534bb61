// A card scores and generates what the CPU does. Skipped where there is no card.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/trainer/model/model_testing.h"
#include "trainer/inference/decoding.h"
#include "trainer/inference/experts.h"
#include "trainer/inference/generate.h"
#include "trainer/inference/score.h"

namespace ela::trainer {
namespace {

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.attention.decay=head", "model.attention.softmax_every=2",
       "model.moe.label_bias=inner"},
      {"model.residual=hyper_link", "model.memory_lobe.enabled=true", "model.moe.label_bias=outer"},
      {"model.attention.kernel=sum_squared", "model.attention.softmax_every=1",
       "model.final_norm=false"},
      {"model.attention.kernel=modulated_dot", "model.memory_lobe.enabled=true"},
      {"model.moe.num_experts=1", "model.moe.top_k=1", "model.moe.label_bias=none"},
      {"model.hidden_size=128", "model.attention.decay=head", "model.memory_lobe.enabled=true"},
  };
  return models;
}

class OnACard : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kernels::NumCudaDevices() == 0) GTEST_SKIP() << kernels::WhyNoCudaDevice();
    auto opened = kernels::CudaDevice::Open(0);
    ASSERT_TRUE(opened.ok()) << opened.status();
    device_ = *std::move(opened);
  }
  ModelPlace Card(kernels::DType dtype = kernels::DType::kF32) const {
    return {.device = device_.get(), .dtype = dtype};
  }
  std::unique_ptr<kernels::CudaDevice> device_;
};

std::unique_ptr<LoadedModel> Load(const std::vector<std::string>& sets, const ModelPlace& place) {
  auto model = LoadedModel::Create(TinyJob(sets), WideValues(2), place);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<int32_t> Prompt(int64_t length) {
  return RandomDocuments(length, {{0}}, /*vocab=*/31, /*seed=*/4).ids;
}

std::vector<std::vector<int32_t>> Generated(LoadedModel* model, double temperature, bool graph,
                                            int64_t samples, int64_t tokens = 300) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.samples = samples;
  options.sampler.temperature = temperature;
  options.graph = graph;
  const auto generation =
      Generate(model, Prompt(37), options, [](int64_t, int32_t) { return true; });
  EXPECT_TRUE(generation.ok()) << generation.status();
  return generation->tokens;
}

TEST_F(OnACard, GeneratesTheTextOfTheCpu) {
  for (const std::vector<std::string>& sets : Models()) {
    const auto expected = Generated(Load(sets, {}).get(), 0, true, 1, 60);
    EXPECT_EQ(Generated(Load(sets, Card()).get(), 0, true, 1, 60), expected) << sets[0];
  }
}

TEST_F(OnACard, DrawsTheSamplesOfTheCpu) {
  for (const std::vector<std::string>& sets : Models()) {
    const auto expected = Generated(Load(sets, {}).get(), 0.8, true, 3, 40);
    EXPECT_EQ(Generated(Load(sets, Card()).get(), 0.8, true, 3, 40), expected) << sets[0];
  }
}

TEST_F(OnACard, ScoresLikeTheCpu) {
  for (const std::vector<std::string>& sets : Models()) {
    for (const int64_t length : {2, 70, 131}) {
      const auto expected = ScoreTokens(Load(sets, {}).get(), Prompt(length));
      const auto score = ScoreTokens(Load(sets, Card()).get(), Prompt(length));
      ASSERT_TRUE(expected.ok() && score.ok()) << score.status();
      EXPECT_LE(RelativeDistance(score->logprobs, expected->logprobs), 1e-4) << sets[0];
    }
  }
}

TEST_F(OnACard, ExpertsDrawWhatTheyDrawOnTheCpu) {
  const auto expected = ProfileExperts(Load(Models()[0], {}).get(), Prompt(70), 64, 5);
  const auto profiles = ProfileExperts(Load(Models()[0], Card()).get(), Prompt(70), 64, 5);
  ASSERT_TRUE(profiles.ok()) << profiles.status();
  ASSERT_EQ(profiles->size(), expected->size());
  for (size_t i = 0; i < profiles->size(); ++i) {
    EXPECT_EQ((*profiles)[i].tokens, (*expected)[i].tokens);
    ASSERT_EQ((*profiles)[i].tokens_drawn.size(), (*expected)[i].tokens_drawn.size());
    for (size_t j = 0; j < (*profiles)[i].tokens_drawn.size(); ++j) {
      EXPECT_EQ((*profiles)[i].tokens_drawn[j].id, (*expected)[i].tokens_drawn[j].id);
    }
  }
}

/// Logits of every step, greedily.
std::vector<std::vector<float>> Steps(LoadedModel* model, bool graph, int64_t count) {
  auto decoding =
      Decoding::Start(model, Prompt(37), {.samples = 2, .most_tokens = 37 + count, .graph = graph});
  EXPECT_TRUE(decoding.ok()) << decoding.status();
  std::vector<std::vector<float>> logits;
  for (int64_t i = 0; i < count; ++i) {
    EXPECT_EQ((*decoding)->replays(), graph && i > 0) << i;
    const std::vector<int32_t> next = (*decoding)->Likeliest();
    EXPECT_EQ((*decoding)->Step(next), absl::OkStatus());
    logits.push_back((*decoding)->Logits());
  }
  return logits;
}

TEST_F(OnACard, AReplayedStepHasTheBitsOfOneThatIsLaunched) {
  for (const kernels::DType dtype : {kernels::DType::kF32, kernels::DType::kBf16}) {
    for (const std::vector<std::string>& sets : Models()) {
      const auto model = Load(sets, Card(dtype));
      EXPECT_EQ(Steps(model.get(), true, 30), Steps(model.get(), false, 30)) << sets[0];
    }
  }
}

// Key-value caches grow at 256 and 512 tokens, and move: the step is recorded again.
TEST_F(OnACard, GoesOnWhenItsCachesGrow) {
  for (const size_t with_softmax : {0, 2}) {
    const auto model = Load(Models()[with_softmax], Card());
    EXPECT_EQ(Generated(model.get(), 0, true, 2, 600), Generated(model.get(), 0, false, 2, 600));
  }
}

// One expert: a rounding must not choose others.
TEST_F(OnACard, DecodesWhatAForwardPassScoresInBf16) {
  for (const std::string set : {"model.attention.decay=head", "model.attention.softmax_every=2"}) {
    const auto model = Load({set, "model.hidden_size=128", "model.moe.num_experts=1",
                             "model.moe.top_k=1", "model.moe.label_bias=none"},
                            Card(kernels::DType::kBf16));
    std::vector<int32_t> ids = Prompt(70);
    auto decoding =
        Decoding::Start(model.get(), {ids.begin(), ids.begin() + 40}, {.most_tokens = 80});
    ASSERT_TRUE(decoding.ok()) << decoding.status();
    std::vector<double> decoded;
    for (size_t i = 40; i < ids.size(); ++i) {
      const std::vector<float> logits = (*decoding)->Logits();
      double sum = 0;
      for (float x : logits) sum += std::exp(static_cast<double>(x));
      decoded.push_back(static_cast<double>(logits[static_cast<size_t>(ids[i])]) - std::log(sum));
      ASSERT_EQ((*decoding)->Step({ids[i]}), absl::OkStatus());
    }
    const auto score = ScoreTokens(model.get(), ids);
    ASSERT_TRUE(score.ok()) << score.status();
    const std::vector<double> scored(score->logprobs.begin() + 39, score->logprobs.end());
    EXPECT_LE(RelativeDistance(decoded, scored), 5e-2) << set;
  }
}

// A card with little left: what it accepts it can do, at the first step and after many.
TEST_F(OnACard, EndsNoGenerationThatItHasAccepted) {
  const auto model = Load({"model.attention.softmax_every=2", "model.hidden_size=128"}, Card());
  constexpr int64_t kLeft = int64_t{192} << 20;
  const kernels::BackendMemory ballast(device_->free_bytes() - static_cast<size_t>(kLeft),
                                       kernels::Backend::kCuda);
  int accepted = 0, refused = 0;
  for (int64_t samples = 1; samples <= 1 << 14; samples *= 2) {
    const auto decoding =
        Decoding::Start(model.get(), Prompt(37), {.samples = samples, .most_tokens = 4000});
    absl::Status status = decoding.status();
    accepted += status.ok() ? 1 : 0;
    for (int i = 0; i < 600 && status.ok(); ++i) {
      status = (*decoding)->Step((*decoding)->Likeliest());
    }
    refused += status.ok() ? 0 : 1;
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, 0);
}

TEST_F(OnACard, SaysWhatDoesNotFit) {
  const auto model = Load({"model.hidden_size=128"}, Card());  // about 18 KB a token
  const auto score = ScoreTokens(model.get(), std::vector<int32_t>(size_t{16} << 20, 1));
  EXPECT_TRUE(absl::IsResourceExhausted(score.status())) << score.status();
}

}  // namespace
}  // namespace ela::trainer
