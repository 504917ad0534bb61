// Profiles of experts in a model whose router is known by hand: token id goes to expert id
// modulo 4.
#include "trainer/inference/experts.h"

#include <gtest/gtest.h>

#include "tests/trainer/loop/training_testing.h"

namespace ela::trainer {
namespace {

constexpr int64_t kExperts = 4, kWidth = 16;

/// Token id is the unit vector of direction id modulo 4, label vectors are these directions, and
/// nothing else adds to a token.
absl::Status ByRemainder(const job::ParameterInfo& parameter, int64_t begin, int64_t end,
                         float* out) {
  const bool embedding = parameter.name == "embed.weight";
  const bool router = parameter.name.ends_with("router.weight");
  const bool gain = parameter.name.find("norm") != std::string::npos;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / kWidth, column = i % kWidth;
    const bool one = (embedding || router) && column == row % kExperts;
    *out++ = gain || one ? 1 : 0;
  }
  return absl::OkStatus();
}

std::vector<ExpertProfile> Profiles(int64_t top_k, const std::vector<int32_t>& ids, int64_t window,
                                    int64_t top) {
  const auto model = LoadedModel::Create(
      TrainingJobWith({"model.moe.label_bias=none", "model.memory_lobe.enabled=false",
                       "model.moe.top_k=" + std::to_string(top_k)}),
      ByRemainder, {});
  EXPECT_TRUE(model.ok()) << model.status();
  const auto profiles = ProfileExperts(model->get(), ids, window, top);
  EXPECT_TRUE(profiles.ok()) << profiles.status();
  return profiles.ok() ? *profiles : std::vector<ExpertProfile>();
}

/// {id, drawn, seen} of each token shown.
std::vector<std::vector<int64_t>> Drawn(const ExpertProfile& profile) {
  std::vector<std::vector<int64_t>> tokens;
  for (const DrawnToken& t : profile.tokens_drawn) tokens.push_back({t.id, t.drawn, t.seen});
  return tokens;
}

const std::vector<int32_t> kIds = {4, 0, 0, 9, 0, 1, 2, 1};

TEST(ProfileExperts, SaysWhatEachExpertDraws) {
  for (const int64_t window : {1, 3, 100}) {
    const std::vector<ExpertProfile> profiles = Profiles(1, kIds, window, 10);
    ASSERT_EQ(profiles.size(), 2u * kExperts);
    for (size_t i = 0; i < profiles.size(); ++i) {
      EXPECT_EQ(profiles[i].layer, static_cast<int64_t>(i) / kExperts);
      EXPECT_EQ(profiles[i].expert, static_cast<int64_t>(i) % kExperts);
    }
    for (const size_t layer : {0u, 1u}) {
      const ExpertProfile* experts = &profiles[layer * kExperts];
      EXPECT_EQ(Drawn(experts[0]), (std::vector<std::vector<int64_t>>{{0, 3, 3}, {4, 1, 1}}));
      EXPECT_EQ(Drawn(experts[1]), (std::vector<std::vector<int64_t>>{{1, 2, 2}, {9, 1, 1}}));
      EXPECT_EQ(Drawn(experts[2]), (std::vector<std::vector<int64_t>>{{2, 1, 1}}));
      EXPECT_TRUE(experts[3].tokens_drawn.empty());
      EXPECT_EQ(experts[0].tokens, 4);
      EXPECT_EQ(experts[0].load, 0.5);
      EXPECT_EQ(experts[3].load, 0);
      EXPECT_NEAR(experts[0].tokens_drawn[0].weight, 3, 1e-6);  // a gate of 1 each time
    }
  }
}

TEST(ProfileExperts, CountsEveryChoiceOfAToken) {
  // The second choice, among equals, is the lowest other expert: 1 for expert 0's tokens, else 0.
  const std::vector<ExpertProfile> profiles = Profiles(2, {0, 1, 2, 3, 2, 3}, 100, 10);
  EXPECT_EQ(profiles[0].load, 0.5);
  EXPECT_EQ(Drawn(profiles[1]), (std::vector<std::vector<int64_t>>{{0, 1, 1}, {1, 1, 1}}));
  EXPECT_EQ(Drawn(profiles[2]), (std::vector<std::vector<int64_t>>{{2, 2, 2}}));
}

TEST(ProfileExperts, OfAnExpertThatDrawsEveryTokenTheMostDrawnAreShown) {
  for (const ExpertProfile& profile : Profiles(kExperts, kIds, 100, 3)) {
    EXPECT_EQ(profile.load, 0.25);
    EXPECT_EQ(Drawn(profile), (std::vector<std::vector<int64_t>>{{0, 3, 3}, {1, 2, 2}, {2, 1, 1}}));
  }
}

TEST(ProfileExperts, TheOnlyExpertDrawsEveryTokenWithWeightOne) {
  const auto model = LoadedModel::Create(
      TrainingJobWith({"model.moe.label_bias=none", "model.memory_lobe.enabled=false",
                       "model.moe.num_experts=1", "model.moe.top_k=1"}),
      ByRemainder, {});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto profiles = ProfileExperts(model->get(), kIds, 3, 3);
  ASSERT_TRUE(profiles.ok()) << profiles.status();
  for (const ExpertProfile& profile : *profiles) {
    EXPECT_EQ(profile.load, 1);
    EXPECT_EQ(Drawn(profile), (std::vector<std::vector<int64_t>>{{0, 3, 3}, {1, 2, 2}, {2, 1, 1}}));
    EXPECT_EQ(profile.tokens_drawn[0].weight, 3);
  }
}

TEST(ProfileExperts, ShowsAtMostSoMany) {
  const std::vector<ExpertProfile> profiles = Profiles(1, kIds, 100, 1);
  EXPECT_EQ(Drawn(profiles[0]), (std::vector<std::vector<int64_t>>{{0, 3, 3}}));
}

TEST(ProfileExperts, RefusesATextWithoutTokens) {
  const auto model = LoadedModel::Create(TrainingJobWith(), ByRemainder, {});
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(ProfileExperts(model->get(), {}, 8, 1).status().message(), "the text holds no token");
}

}  // namespace
}  // namespace ela::trainer
