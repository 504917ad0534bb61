// What generation takes is planned, refused on all ranks where it is not there, and never more than
// was planned.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/status_macros.h"
#include "tests/trainer/model/model_testing.h"
#include "trainer/inference/decoding.h"
#include "trainer/inference/score.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

using ::testing::HasSubstr;

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.attention.softmax_every=2"},
      {"model.attention.softmax_every=1", "model.residual=hyper_link"},
      {"model.attention.kernel=sum_squared", "model.memory_lobe.enabled=true"},
      {"model.moe.num_experts=1", "model.moe.top_k=1", "model.moe.label_bias=none",
       "model.attention.softmax_every=2"},
  };
  return models;
}

constexpr int64_t kPlenty = int64_t{1} << 60;

/// A model that finds `free` bytes whenever it asks.
std::unique_ptr<LoadedModel> Load(const std::vector<std::string>& sets, const int64_t* free,
                                  Communicator* world = nullptr) {
  auto model = LoadedModel::Create(TinyJob(sets), WideValues(2),
                                   {.world = world, .free_bytes = [free] { return *free; }});
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<int32_t> Prompt(int64_t length) {
  return RandomDocuments(length, {{0}}, /*vocab=*/31, /*seed=*/4).ids;
}

TEST(DecodingMemory, MoreSamplesThanAMachineHoldsAreRefused) {
  for (const std::vector<std::string>& sets : Models()) {
    const auto model = LoadedModel::Create(TinyJob(sets), WideValues(2), {});
    ASSERT_TRUE(model.ok());
    const auto decoding = Decoding::Start(model->get(), Prompt(37), {.samples = int64_t{1} << 40});
    EXPECT_TRUE(absl::IsResourceExhausted(decoding.status())) << decoding.status();
  }
}

/// The least free memory with which so many samples start.
int64_t LeastFree(int64_t samples) {
  int64_t low = 0, high = int64_t{1} << 30, free = kPlenty;
  while (low + 1 < high) {
    free = kPlenty;
    const auto model = Load(Models()[0], &free);
    free = low + (high - low) / 2;
    const bool starts = Decoding::Start(model.get(), Prompt(37), {.samples = samples}).ok();
    (starts ? high : low) = free;
  }
  return high;
}

TEST(DecodingMemory, TheRefusalSaysHowManySamplesFit) {
  int64_t free = kPlenty;
  const auto model = Load(Models()[0], &free);
  free = LeastFree(5);
  const auto many = Decoding::Start(model.get(), Prompt(37), {.samples = 1000});
  EXPECT_THAT(std::string(many.status().message()), HasSubstr(": 5 samples would fit"));
  free = LeastFree(1) - 1;
  const auto one = Decoding::Start(model.get(), Prompt(37), {.samples = 1});
  EXPECT_THAT(std::string(one.status().message()), HasSubstr(": try a shorter text"));
}

TEST(DecodingMemory, EveryRankRefusesWhatTheLastOneCannotHold) {
  const absl::Status status = RunLocalRanks(3, [](Communicator& world) -> absl::Status {
    int64_t free = kPlenty;
    const auto model = Load(Models()[0], &free, &world);
    if (model->last_shard()) free = 1000;
    const auto decoding = Decoding::Start(model.get(), Prompt(37), {.samples = 100});
    EXPECT_TRUE(absl::IsResourceExhausted(decoding.status())) << decoding.status();
    EXPECT_THAT(std::string(decoding.status().message()), HasSubstr("rank 2: 100 samples of 37"));
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

/// Steps until one is refused, at most `most`; how many were taken.
int64_t StepsUntilRefused(Decoding* decoding, int64_t most, absl::Status* refusal) {
  for (int64_t i = 0; i < most; ++i) {
    *refusal = decoding->Step(decoding->Likeliest());
    if (!refusal->ok()) return i;
  }
  return most;
}

TEST(DecodingMemory, CachesGrowUntilNothingIsFreeAndTheRefusalSaysSo) {
  for (const size_t softmax : {0, 1}) {
    int64_t free = kPlenty;
    const auto model = Load(Models()[softmax], &free);
    const auto decoding =
        Decoding::Start(model.get(), Prompt(37), {.samples = 3, .most_tokens = 900});
    ASSERT_TRUE(decoding.ok()) << decoding.status();
    free = 0;
    absl::Status refusal;
    EXPECT_EQ(StepsUntilRefused(decoding->get(), 900, &refusal), 256 - 37);
    EXPECT_TRUE(absl::IsResourceExhausted(refusal)) << refusal;
    EXPECT_THAT(std::string(refusal.message()), HasSubstr("3 samples of 257 tokens"));
    free = kPlenty;
    EXPECT_EQ(StepsUntilRefused(decoding->get(), 900 - 256, &refusal), 900 - 256) << refusal;
  }
}

TEST(DecodingMemory, CachesTakeWhatFitsWhereTwiceTheirSizeDoesNot) {
  int64_t free = kPlenty;
  const auto model = Load(Models()[0], &free);  // a token: 2 x 16 floats in one layer
  const auto decoding = Decoding::Start(model.get(), Prompt(37), {.most_tokens = 900});
  ASSERT_TRUE(decoding.ok()) << decoding.status();
  free = 300 * 128 + 300 * 128 / 64;
  absl::Status refusal;
  EXPECT_EQ(StepsUntilRefused(decoding->get(), 300 - 37, &refusal), 300 - 37) << refusal;
  free = 0;
  EXPECT_EQ(StepsUntilRefused(decoding->get(), 1, &refusal), 0);
}

TEST(DecodingMemory, PassesTakeNoMoreThanWasPlanned) {
  for (const std::vector<std::string>& sets : Models()) {
    for (const int64_t samples : {1, 3, 200}) {
      const int64_t free = kPlenty;
      const auto model = Load(sets, &free);
      const auto decoding = Decoding::Start(model.get(), Prompt(150), {.samples = samples});
      ASSERT_TRUE(decoding.ok()) << decoding.status();
      ASSERT_EQ((*decoding)->Step((*decoding)->Likeliest()), absl::OkStatus());
      const auto saved = static_cast<int64_t>(model->context().saved->peak_bytes());
      const auto scratch = static_cast<int64_t>(model->context().ctx.scratch->peak_bytes());
      EXPECT_EQ(model->Lacking({saved, scratch}), 0) << sets[0] << ", " << samples;
      EXPECT_EQ(model->MemoryOf(1, 150).saved, saved);
    }
  }
}

// A long sequence keeps more, many short ones work with more: both are held.
TEST(DecodingMemory, WhatPassesHoldIsCountedArenaByArena) {
  int64_t free = kPlenty;
  const auto model = Load(Models()[0], &free);
  const PassMemory one = {1000, 70000}, other = {90000, 500};
  model->Reserve(one);
  EXPECT_EQ(model->Lacking(other), 89000);
  model->Reserve(other);
  EXPECT_EQ(model->Lacking(one) + model->Lacking(other), 0);
  EXPECT_EQ(model->Lacking({90000, 70001}), 1);
}

TEST(DecodingMemory, ScoringMoreTokensThanFitIsRefused) {
  int64_t free = kPlenty;
  const auto model = Load(Models()[0], &free);
  const PassMemory pass = model->MemoryOf(1, 99);
  free = pass.saved + pass.scratch;
  EXPECT_TRUE(ScoreTokens(model.get(), Prompt(100)).ok());
  free = 0;
  EXPECT_TRUE(ScoreTokens(model.get(), Prompt(100)).ok()) << "held already";
  EXPECT_TRUE(absl::IsResourceExhausted(ScoreTokens(model.get(), Prompt(200)).status()));
}

}  // namespace
}  // namespace ela::trainer
