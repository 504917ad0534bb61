// A small valid job for tests.
#pragma once

#include <cstdlib>
#include <string_view>

#include "proto/job/job_file.h"

namespace ela::job {

inline constexpr std::string_view kSmallJob = R"(apiVersion: ela/v1
kind: TrainingJob
metadata:
  name: small
  labels: {team: 42}
spec:
  model:
    vocab_size: 1_000
    hidden_size: 64
    num_layers: 2
    num_attention_heads: 4
    attention: {decay: head}
    moe: {num_experts: 4, top_k: 2, intermediate_size: 32}
  data:
    train:
    - path: data/a
      weight: 2
    - {path: /data/b, weight: 0.5}
    seq_len: 128
    document_mask: false
  training:
    steps: 1e2
    global_batch_size: 8
  optimizer:
    betas: [0.9, 0.999]
  parallelism: {data: 2, sequence: 2, expert: 4}
)";

inline v1::TrainingJob SmallJob() {
  const auto job = ParseJob(kSmallJob, "small.yaml");
  if (!job.ok()) std::abort();
  return *job;
}

}  // namespace ela::job
