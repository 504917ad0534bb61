#include "proto/job/plan.h"

#include <gtest/gtest.h>

#include <set>

namespace ela::job {
namespace {

// The paper's sizes, by hand: presets are tested with the job file.
v1::ModelSpec Paper() {
  v1::ModelSpec model;
  model.set_vocab_size(6400);
  model.set_hidden_size(256);
  model.set_num_layers(4);
  model.set_num_attention_heads(4);
  model.set_residual(v1::RESIDUAL_HYPER_LINK);
  model.set_final_norm(false);
  model.mutable_moe()->set_num_experts(4);
  model.mutable_moe()->set_top_k(2);
  model.mutable_moe()->set_intermediate_size(256);
  model.mutable_memory_lobe()->set_enabled(false);
  model.mutable_memory_lobe()->set_norm(false);
  return model;
}

int64_t SumOfList(const v1::ModelSpec& model) {
  int64_t sum = 0;
  for (const ParameterInfo& parameter : Parameters(model)) sum += parameter.numel();
  return sum;
}

TEST(Plan, PaperHasItsPublishedParameterCount) { EXPECT_EQ(ParameterCount(Paper()), 5'837'840); }

TEST(Plan, PaperWithLobeHasItsPublishedParameterCount) {
  v1::ModelSpec model = Paper();
  model.mutable_memory_lobe()->set_enabled(true);
  EXPECT_EQ(ParameterCount(model), 6'624'272);
}

TEST(Plan, PaperWithPreNormHasItsPublishedParameterCount) {
  v1::ModelSpec model = Paper();
  model.set_residual(v1::RESIDUAL_PRE_NORM);
  EXPECT_EQ(ParameterCount(model), 5'838'864);
}

TEST(Plan, CountEqualsSumOfList) {
  v1::ModelSpec model = Paper();
  for (int bits = 0; bits < 16; ++bits) {
    model.set_residual(bits & 1 ? v1::RESIDUAL_PRE_NORM : v1::RESIDUAL_HYPER_LINK);
    model.set_final_norm(bits & 2);
    model.mutable_memory_lobe()->set_enabled(bits & 4);
    model.mutable_memory_lobe()->set_norm(bits & 8);
    EXPECT_EQ(ParameterCount(model), SumOfList(model)) << "variant " << bits;
  }
}

TEST(Plan, ListHasTheDocumentedOrder) {
  v1::ModelSpec model = Paper();
  model.set_num_layers(1);
  model.set_final_norm(true);
  model.set_residual(v1::RESIDUAL_PRE_NORM);
  model.mutable_moe()->set_num_experts(2);
  model.mutable_memory_lobe()->set_enabled(true);
  model.mutable_memory_lobe()->set_norm(true);
  std::vector<std::string> names;
  for (const ParameterInfo& parameter : Parameters(model)) names.push_back(parameter.name);
  const std::vector<std::string> expected = {
      "embed.weight",
      "layers.0.norm1.weight",
      "layers.0.attn.q.weight",
      "layers.0.attn.k.weight",
      "layers.0.attn.v.weight",
      "layers.0.attn.o.weight",
      "layers.0.norm2.weight",
      "layers.0.moe.router.weight",
      "layers.0.moe.router.bias",
      "layers.0.moe.experts.0.up.weight",
      "layers.0.moe.experts.0.down.weight",
      "layers.0.moe.experts.1.up.weight",
      "layers.0.moe.experts.1.down.weight",
      "layers.0.lobe.norm.weight",
      "layers.0.lobe.q.weight",
      "layers.0.lobe.k.weight",
      "layers.0.lobe.v.weight",
      "final_norm.weight",
  };
  EXPECT_EQ(names, expected);
}

TEST(Plan, OnlyMatricesDecayAndOnlyExpertsAreExperts) {
  v1::ModelSpec model = Paper();
  model.mutable_memory_lobe()->set_enabled(true);
  model.mutable_memory_lobe()->set_norm(true);
  for (const ParameterInfo& parameter : Parameters(model)) {
    EXPECT_EQ(parameter.decays, parameter.shape.size() == 2) << parameter.name;
    EXPECT_EQ(parameter.is_expert, parameter.name.find(".experts.") != std::string::npos)
        << parameter.name;
  }
}

TEST(Plan, ActiveParametersCountTopKExpertsAndNoVectors) {
  // embed + 4 x (attention + router + 2 of 4 experts)
  const int64_t expected =
      6400 * 256 + 4 * (4 * 256 * 256 + 4 * 256 + 2 * (2 * 256 * 256 + 256 * 256));
  EXPECT_EQ(ActiveParameterCount(Paper()), expected);
}

TEST(Plan, FlopsAddSoftmaxLayersByTheirLength) {
  v1::ModelSpec model = Paper();
  const double base = 6.0 * static_cast<double>(ActiveParameterCount(model));
  EXPECT_DOUBLE_EQ(ModelFlopsPerToken(model, 128), base);
  model.mutable_attention()->set_softmax_every(3);  // layer 2 of 0..3
  EXPECT_DOUBLE_EQ(ModelFlopsPerToken(model, 128), base + 12.0 * 128 * 256);
}

}  // namespace
}  // namespace ela::job
