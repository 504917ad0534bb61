// Every gradient of the whole model against finite differences of its loss, in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "proto/job/plan.h"
#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

/// Sets beside the tiny job's own, such that every pair of values of two settings is in some case.
struct Variant {
  const char* name;
  std::vector<std::string> sets;
};

const char* const kCausalLobe = "model.memory_lobe={enabled: true, num_heads: 2}";
const char* const kBareLobe = "model.memory_lobe={enabled: true, norm: false}";
const char* const kLeakingLobe =
    "model.memory_lobe={enabled: true, mode: bidirectional, allow_future_leak: true}";
const char* const kMasked = "training.objective=masked_token";

std::vector<std::string> Settings(const std::string& residual, const std::string& bias,
                                  const std::string& kernel, const std::string& decay) {
  return {"model.residual=" + residual, "model.moe.label_bias=" + bias,
          "model.attention.kernel=" + kernel, "model.attention.decay=" + decay};
}

std::vector<std::string> With(std::vector<std::string> sets, std::vector<std::string> more) {
  sets.insert(sets.end(), more.begin(), more.end());
  return sets;
}

std::vector<Variant> Variants() {
  return {
      {"paper", With(Settings("hyper_link", "inner", "hadamard_exp", "none"),
                     {kBareLobe, "model.final_norm=false"})},
      {"recommended", With(Settings("pre_norm", "inner", "hadamard_exp", "head"),
                           {"model.attention.softmax_every=2"})},
      {"demo", With(Settings("pre_norm", "inner", "hadamard_exp", "head"), {kCausalLobe})},
      {"outer", With(Settings("hyper_link", "outer", "sum_squared", "head"), {kLeakingLobe})},
      {"sub", With(Settings("pre_norm", "none", "sub_squared", "none"),
                   {kCausalLobe, "model.final_norm=false"})},
      {"modulated", With(Settings("hyper_link", "none", "modulated_dot", "head"),
                         {kCausalLobe, "model.attention.softmax_every=2"})},
      {"sum", With(Settings("pre_norm", "outer", "sum_squared", "none"), {kBareLobe})},
      {"leaking", With(Settings("pre_norm", "outer", "modulated_dot", "none"), {kLeakingLobe})},
      {"masked",
       With(Settings("hyper_link", "inner", "sub_squared", "none"), {kLeakingLobe, kMasked})},
      {"masked softmax", With(Settings("pre_norm", "none", "hadamard_exp", "none"),
                              {kMasked, "model.attention.softmax_every=2"})},
      {"dense", With(Settings("pre_norm", "inner", "hadamard_exp", "head"),
                     {"model.moe.num_experts=1", "model.moe.top_k=1"})},
      {"dense without labels", With(Settings("pre_norm", "none", "hadamard_exp", "none"),
                                    {"model.moe.num_experts=1", "model.moe.top_k=1"})},
      {"dense hyper link", With(Settings("hyper_link", "none", "hadamard_exp", "head"),
                                {kCausalLobe, "model.moe.num_experts=1", "model.moe.top_k=1"})},
      {"recompute", With(Settings("hyper_link", "outer", "hadamard_exp", "head"),
                         {kCausalLobe, "training.recompute=true", "model.moe.top_k=4"})},
  };
}

Documents TwoSequences() { return RandomDocuments(12, {{0}, {0, 1, 7}}, /*vocab=*/31, /*seed=*/3); }

double Direction(int64_t i) { return CounterNormal(77, 5, static_cast<uint64_t>(i)); }

/// (f(w + h u) - f(w - h u)) / 2h, for one tensor and a random direction u.
double Difference(const v1::TrainingJob& job, const std::string& tensor) {
  constexpr double kStep = 1.0 / 65536;
  double losses[2];
  for (int side = 0; side < 2; ++side) {
    LoneModel model(job, WideValues(1), kernels::Backend::kReference);
    const kernels::Tensor w = model.store.param(tensor);
    const double step = side == 0 ? kStep : -kStep;
    for (int64_t i = 0; i < w.numel(); ++i) w.as<double>()[i] += step * Direction(i);
    losses[side] = model.MeanLoss(TwoSequences());
  }
  return (losses[0] - losses[1]) / (2 * kStep);
}

class DecoderGradient : public ::testing::TestWithParam<Variant> {};

TEST_P(DecoderGradient, IsTheSlopeOfTheLossAlongEveryTensor) {
  const v1::TrainingJob job = TinyJob(GetParam().sets);
  const Outcome outcome = RunModel(job, TwoSequences(), WideValues(1), {});
  for (const job::ParameterInfo& parameter : job::Parameters(job.spec().model())) {
    const std::vector<double>& grad = outcome.grads.at(parameter.name);
    double slope = 0, size = 0;
    for (size_t i = 0; i < grad.size(); ++i) {
      slope += grad[i] * Direction(static_cast<int64_t>(i));
      size += grad[i] * grad[i];
    }
    EXPECT_NEAR(Difference(job, parameter.name), slope, 1e-6 * std::sqrt(size) + 1e-10)
        << parameter.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, DecoderGradient, ::testing::ValuesIn(Variants()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

}  // namespace
}  // namespace ela::trainer
