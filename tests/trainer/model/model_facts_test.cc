// What a reader can check by hand: sizes, and the loss of a model that knows nothing.
#include <gtest/gtest.h>

#include <cmath>

#include "proto/job/plan.h"
#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;

v1::TrainingJob Paper(std::vector<std::string> sets) {
  sets.insert(sets.begin(),
              {"model={preset: paper}", "training.global_batch_size=1", "data.seq_len=96"});
  return TinyJob(sets);
}

int64_t NumbersIn(const v1::TrainingJob& job) {
  const ParameterStore store(job::Parameters(job.spec().model()), StoreOptions());
  int64_t numbers = 0;
  for (const ParameterClass cls : kParameterClasses) {
    for (const ParameterSegment& segment : store.segments(cls)) numbers += segment.info.numel();
  }
  return numbers;
}

TEST(ParameterStore, HoldsThePublishedNumberOfParameters) {
  EXPECT_EQ(NumbersIn(Paper({})), 5'837'840);
  EXPECT_EQ(NumbersIn(Paper({"model.memory_lobe.enabled=true"})), 6'624'272);
  EXPECT_EQ(NumbersIn(Paper({"model.residual=pre_norm"})), 5'838'864);
}

void ExpectLogVAtInit(const v1::TrainingJob& job) {
  const v1::ModelSpec& model = job.spec().model();
  LoneModel lone(job, InitialSource(model.num_layers(), 1), Backend::kCpu);
  const Documents documents = RandomDocuments(96, {{0}}, model.vocab_size(), 9);
  const TokenRows rows(SliceOf(documents, 0, 1, 0, 96), 96, 0, 1);
  ASSERT_EQ(lone.decoder.Forward(lone.layer, rows, nullptr), absl::OkStatus());
  double loss_sum = 0;
  lone.decoder.Loss(lone.layer, rows, &loss_sum);
  const double expected = std::log(static_cast<double>(model.vocab_size()));
  EXPECT_NEAR(loss_sum / 95, expected, 0.01 * expected);
}

TEST(InitialLoss, OfThePapersModelIsLnV) {
  ExpectLogVAtInit(Paper({}));
  ExpectLogVAtInit(Paper({"model.memory_lobe.enabled=true", "model.moe.label_bias=outer"}));
  ExpectLogVAtInit(Paper({"model.attention.kernel=sum_squared"}));
  ExpectLogVAtInit(Paper({"model.attention.kernel=sub_squared"}));
  ExpectLogVAtInit(Paper({"model.attention.kernel=modulated_dot"}));
}

TEST(InitialLoss, OfTheRecommendedModelIsLnV) {
  ExpectLogVAtInit(
      TinyJob({"model={preset: recommended, vocab_size: 2000, hidden_size: 128, "
               "num_layers: 6, num_attention_heads: 4, moe: {num_experts: 4, top_k: 2, "
               "intermediate_size: 128}}",
               "data.seq_len=96"}));
}

}  // namespace
}  // namespace ela::trainer
