// Experts spread over ranks compute what they compute on one: with experts that no token, or every
// token, or only ties chose.
#include <gtest/gtest.h>

#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;

Documents Some() { return RandomDocuments(12, {{0}, {0, 5}, {0}, {0, 11}}, 31, 8); }

ChangeElement RouterBias(int64_t expert, float bias) {
  return [expert, bias](const std::string& name, int64_t i, float value) {
    return name.ends_with("router.bias") && i == expert ? bias : value;
  };
}

/// All probabilities are equal: every token ties, and takes the lowest experts.
float OnlyTies(const std::string& name, int64_t, float value) {
  return name.find("moe.router") != std::string::npos ? 0 : value;
}

/// The outcome with the experts on one rank; on any expert group it must be the same.
Outcome ExpectExpertParallelEqualsLocal(const std::vector<std::string>& sets,
                                        const ChangeElement& change) {
  Outcome reference;
  for (const char* bias : {"none", "inner", "outer"}) {
    std::vector<std::string> all = sets;
    all.push_back(std::string("model.moe.label_bias=") + bias);
    const v1::TrainingJob job = TinyJob(all);
    for (Backend backend : {Backend::kReference, Backend::kCpu}) {
      reference = RunModel(job, Some(), WideValues(4, change), {.backend = backend});
      for (const MeshSizes& mesh : {MeshSizes{2, 1, 2}, MeshSizes{4, 1, 4}, MeshSizes{2, 2, 2}}) {
        const Outcome spread =
            RunModel(job, Some(), WideValues(4, change), {.backend = backend, .mesh = mesh});
        const auto [distance, name] = WorstDistance(spread, reference);
        EXPECT_LE(distance, backend == Backend::kReference ? 1e-10 : 1e-5)
            << name << ", " << bias << ", expert " << mesh.expert;
        EXPECT_EQ(spread.expert_counts, reference.expert_counts);
      }
    }
  }
  return reference;
}

TEST(ExpertParallel, EqualsLocal) { ExpectExpertParallelEqualsLocal({}, {}); }

TEST(ExpertParallel, EqualsLocalWhenAnExpertGetsNoToken) {
  const Outcome outcome = ExpectExpertParallelEqualsLocal({}, RouterBias(1, -1e4f));
  EXPECT_EQ(outcome.expert_counts[1], 0);
  const std::vector<double>& grad = outcome.grads.at("layers.0.moe.experts.1.up.weight");
  EXPECT_EQ(grad, std::vector<double>(grad.size()));
}

TEST(ExpertParallel, EqualsLocalWhenAllTokensGoToOneExpert) {
  const Outcome outcome =
      ExpectExpertParallelEqualsLocal({"model.moe.top_k=1"}, RouterBias(2, 1e4f));
  EXPECT_EQ(outcome.expert_counts, (std::vector<int64_t>{0, 0, 48, 0, 0, 0, 48, 0}));
}

TEST(ExpertParallel, EqualsLocalWhenAllExpertsTie) {
  const Outcome outcome = ExpectExpertParallelEqualsLocal({}, OnlyTies);
  EXPECT_EQ(outcome.expert_counts, (std::vector<int64_t>{48, 48, 0, 0, 48, 48, 0, 0}));
}

// A dense network skips the routing that one expert without label vectors could pay: the same bits
// as one expert whose label vector is zero, and no gradient at the router.
TEST(DenseLayer, IsOneRoutedExpert) {
  const Documents documents = RandomDocuments(24, {{0}, {0, 5}}, /*vocab=*/31, /*seed=*/3);
  const ParameterSource values = WideValues(1, [](const std::string& name, int64_t, float value) {
    return name.find("router.weight") == std::string::npos ? value : 0.0f;
  });
  for (const char* residual : {"model.residual=pre_norm", "model.residual=hyper_link"}) {
    const auto run = [&](const std::string& bias) {
      return RunModel(TinyJob({residual, "model.moe.num_experts=1", "model.moe.top_k=1",
                               "model.moe.label_bias=" + bias}),
                      documents, values, {.backend = Backend::kCpu});
    };
    const Outcome dense = run("none");
    Outcome routed = run("inner");
    for (const auto& [name, grad] : dense.grads) {
      if (name.find(".moe.router.") == std::string::npos) continue;
      EXPECT_EQ(grad, std::vector<double>(grad.size())) << name;
      routed.grads[name] = grad;  // there it is that of the label vector
    }
    EXPECT_EQ(dense.loss, routed.loss) << residual;
    EXPECT_EQ(dense.expert_counts, routed.expert_counts);
    const auto [distance, where] = WorstDistance(dense, routed);
    EXPECT_EQ(distance, 0) << where;
  }
}

TEST(DenseLayer, KeepsNothingOfItsRouting) {
  LoneModel model(
      TinyJob({"model.moe.num_experts=1", "model.moe.top_k=1", "model.moe.label_bias=none"}),
      WideValues(1), Backend::kCpu);
  model.MeanLoss(RandomDocuments(24, {{0}}, /*vocab=*/31, /*seed=*/3));
  EXPECT_TRUE(model.decoder.layer(0).moe().experts().empty());
  EXPECT_TRUE(model.decoder.layer(0).moe().weights().empty());
}

}  // namespace
}  // namespace ela::trainer
