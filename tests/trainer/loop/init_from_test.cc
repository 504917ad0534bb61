#include "trainer/loop/init_from.h"

#include "gmock/gmock.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"

namespace ela::trainer {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::ModelSpec Model(bool lobe, int64_t layers = 2) {
  v1::TrainingJob job;
  v1::ModelSpec* model = job.mutable_spec()->mutable_model();
  model->set_vocab_size(31);
  model->set_hidden_size(16);
  model->set_num_layers(layers);
  model->set_num_attention_heads(2);
  model->mutable_moe()->set_num_experts(2);
  model->mutable_moe()->set_intermediate_size(8);
  model->mutable_memory_lobe()->set_enabled(lobe);
  return job::Resolve(job, "").spec().model();
}

bool IsLobe(const std::string& name) { return name.find(".lobe.") != std::string::npos; }

/// What a step of the model holds. `only_lobes`: what an exported lobe does.
v1::StepManifest StepOf(const v1::ModelSpec& model, bool only_lobes = false) {
  v1::StepManifest manifest;
  for (const job::ParameterInfo& parameter : job::Parameters(model)) {
    if (only_lobes && !IsLobe(parameter.name)) continue;
    for (const char* prefix : {"model/", "adam_m/"}) {
      v1::TensorRecord* record = manifest.add_tensors();
      record->set_name(prefix + parameter.name);
      record->mutable_shape()->Assign(parameter.shape.begin(), parameter.shape.end());
    }
  }
  v1::TrainingJob job;
  job.set_api_version("ela/v1");
  job.set_kind("TrainingJob");
  job.mutable_metadata()->set_name("m");
  *job.mutable_spec()->mutable_model() = model;
  manifest.set_resolved_job(job::ToYaml(job));
  return manifest;
}

void ExpectRefused(const v1::StepManifest& source, const v1::ModelSpec& model,
                   const std::string& why) {
  const auto plan = PlanInit(source, model);
  EXPECT_TRUE(absl::IsInvalidArgument(plan.status())) << plan.status();
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr(why));
}

TEST(InitFromTest, TheSameModelIsTakenWhole) {
  const auto plan = PlanInit(StepOf(Model(true)), Model(true));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->fresh, IsEmpty());
  EXPECT_THAT(plan->notes, IsEmpty());
}

TEST(InitFromTest, LobesBeginAfreshOnAModelWithoutThem) {
  const auto plan = PlanInit(StepOf(Model(false)), Model(true));
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const job::ParameterInfo& parameter : job::Parameters(Model(true))) {
    EXPECT_EQ(plan->fresh.count(parameter.name) > 0, IsLobe(parameter.name)) << parameter.name;
  }
  EXPECT_THAT(plan->notes, Contains(HasSubstr("they begin afresh")));
}

TEST(InitFromTest, AllElseBeginsAfreshAroundLobesAlone) {
  const auto plan = PlanInit(StepOf(Model(true), /*only_lobes=*/true), Model(true));
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const job::ParameterInfo& parameter : job::Parameters(Model(true))) {
    EXPECT_NE(plan->fresh.count(parameter.name) > 0, IsLobe(parameter.name)) << parameter.name;
  }
}

TEST(InitFromTest, LobesAreNotTrainedAloneOverInitialValues) {
  const v1::StepManifest lobes = StepOf(Model(true), /*only_lobes=*/true);
  const auto plan = PlanInit(lobes, Model(true), v1::TRAIN_ONLY_MEMORY_LOBE);
  EXPECT_TRUE(absl::IsInvalidArgument(plan.status())) << plan.status();
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("ela checkpoint import"));
  EXPECT_TRUE(PlanInit(StepOf(Model(true)), Model(true), v1::TRAIN_ONLY_MEMORY_LOBE).ok());
  EXPECT_TRUE(PlanInit(StepOf(Model(false)), Model(true), v1::TRAIN_ONLY_MEMORY_LOBE).ok());
}

TEST(InitFromTest, LobesAreLeftOutByAModelWithoutThem) {
  const auto plan = PlanInit(StepOf(Model(true)), Model(false));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->notes, Contains(HasSubstr("left out")));
}

TEST(InitFromTest, MissingTensorsAreNamed) {
  ExpectRefused(StepOf(Model(true, 1)), Model(true, 2), "lacks tensors of this model: layers.1.");
  v1::StepManifest some_lobes = StepOf(Model(true));
  for (v1::TensorRecord& record : *some_lobes.mutable_tensors()) {
    if (record.name() == "model/layers.1.lobe.q.weight") record.set_name("model/layers.1.lobe.x");
  }
  ExpectRefused(some_lobes, Model(true), "lacks tensors of this model: layers.1.lobe.q.weight");
  ExpectRefused(v1::StepManifest(), Model(true), "embed.weight");
}

TEST(InitFromTest, TensorsWithoutAPlaceAreNamed) {
  ExpectRefused(StepOf(Model(true, 3)), Model(true, 2), "no place for: layers.2.");
  ExpectRefused(StepOf(Model(true), /*only_lobes=*/true), Model(false), "Memory Lobes alone");
}

TEST(InitFromTest, AnotherShapeIsNamed) {
  v1::ModelSpec wide = Model(true);
  wide.set_hidden_size(32);
  ExpectRefused(StepOf(Model(true)), wide,
                "embed.weight is [31, 16] there, this model has [31, 32]");
}

TEST(InitFromTest, OtherKeysAreNoted) {
  v1::ModelSpec model = Model(true);
  model.mutable_attention()->set_kernel(v1::KERNEL_SUM_SQUARED);
  const auto plan = PlanInit(StepOf(Model(true)), model);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->notes, Contains(HasSubstr("attention.kernel: \"hadamard_exp\" there, "
                                              "\"sum_squared\" here")));
}

}  // namespace
}  // namespace ela::trainer
