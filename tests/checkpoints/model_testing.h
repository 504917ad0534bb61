// A step of a real model: the parameters of a small job, with known contents.
#pragma once

#include <string>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "tests/checkpoints/step_testing.h"

namespace ela::checkpoints {

inline v1::TrainingJob ModelJob(const std::string& tokenizer = "", int64_t width = 16) {
  v1::TrainingJob job;
  job.set_api_version("ela/v1");
  job.set_kind("TrainingJob");
  job.mutable_metadata()->set_name("small");
  v1::ModelSpec* model = job.mutable_spec()->mutable_model();
  model->set_vocab_size(50);
  model->set_hidden_size(width);
  model->set_num_layers(2);
  model->set_num_attention_heads(2);
  model->mutable_moe()->set_num_experts(2);
  model->mutable_moe()->set_intermediate_size(24);
  model->mutable_memory_lobe()->set_enabled(true);
  model->mutable_memory_lobe()->set_num_heads(2);
  if (!tokenizer.empty()) job.mutable_spec()->mutable_tokenizer()->set_path(tokenizer);
  return job::Resolve(job, "");
}

/// model/, adam_m/ and adam_v/ of all its parameters.
inline Model ModelOf(const v1::TrainingJob& job, uint32_t seed) {
  Model model;
  for (const job::ParameterInfo& parameter : job::Parameters(job.spec().model())) {
    for (const char* prefix : {"model/", "adam_m/", "adam_v/"}) {
      model.Add(prefix + parameter.name, parameter.shape, seed++);
    }
  }
  return model;
}

inline absl::Status SaveModel(const std::string& path, const v1::TrainingJob& job, uint32_t seed,
                              int64_t step = 100) {
  auto catalog = Catalog::OpenForWriting(path, 0);
  if (!catalog.ok()) return catalog.status();
  SaveOptions options;
  options.step = step;
  options.attempt = (*catalog)->attempt();
  auto manifest = WriteStep(path, ModelOf(job, seed), options);
  if (!manifest.ok()) return manifest.status();
  manifest->set_resolved_job(job::ToYaml(job));
  manifest->set_job("small");
  manifest->mutable_state()->set_tokens(12345);
  manifest->set_commit_unix_ms(1764040352000);
  return (*catalog)->Commit(*manifest);
}

}  // namespace ela::checkpoints
