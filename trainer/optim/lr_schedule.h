// Learning rate by training step. t = 1 .. N is the step about to be taken, W = warmup_steps:
//
//   t <= W    lr t / W
//   cosine    min_lr + (lr - min_lr) (1 + cos(pi (t - W) / (N - W))) / 2
//   linear    lr - (lr - min_lr) (t - W) / (N - W)
//   wsd       lr until t = N - D, then linearly to min_lr at t = N; D = min(round(decay_fraction
//   N),
//             N - W)
//   constant  lr
//
// t counts training steps, skipped updates included; t > N gives the value of N.
#pragma once

#include <cstdint>

#include "ela/v1/job.pb.h"

namespace ela::trainer {

struct LrSchedule {
  v1::LrSchedule type = v1::LR_SCHEDULE_COSINE;
  double lr = 0;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  int64_t steps = 1;          // N
  double decay_fraction = 0;  // wsd
};

/// From a resolved job.
LrSchedule MakeLrSchedule(const v1::JobSpec& spec);

double LearningRate(const LrSchedule& schedule, int64_t t);

}  // namespace ela::trainer
