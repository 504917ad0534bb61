#include "trainer/optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ela::trainer {

LrSchedule MakeLrSchedule(const v1::JobSpec& spec) {
  const v1::LrSchedulerSpec& scheduler = spec.lr_scheduler();
  LrSchedule schedule;
  schedule.type = scheduler.type();
  schedule.lr = spec.optimizer().lr();
  schedule.min_lr = scheduler.min_lr();
  schedule.warmup_steps = scheduler.warmup_steps();
  schedule.steps = spec.training().steps();
  schedule.decay_fraction = scheduler.decay_fraction();
  return schedule;
}

double LearningRate(const LrSchedule& schedule, int64_t t) {
  const double lr = schedule.lr, min_lr = schedule.min_lr;
  const int64_t steps = schedule.steps, warmup = schedule.warmup_steps;
  t = std::min(t, steps);
  if (t <= warmup) return lr * static_cast<double>(t) / static_cast<double>(warmup);

  // 0 at `begin`, 1 at the last step; t > begin, so that it is never 0 / 0.
  const auto progress = [&](int64_t begin) {
    return static_cast<double>(t - begin) / static_cast<double>(steps - begin);
  };
  switch (schedule.type) {
    case v1::LR_SCHEDULE_CONSTANT:
      return lr;
    case v1::LR_SCHEDULE_LINEAR:
      return lr - (lr - min_lr) * progress(warmup);
    case v1::LR_SCHEDULE_WSD: {
      const double wanted = std::round(schedule.decay_fraction * static_cast<double>(steps));
      const int64_t begin = steps - std::min(static_cast<int64_t>(wanted), steps - warmup);
      return t <= begin ? lr : lr - (lr - min_lr) * progress(begin);
    }
    default:
      return min_lr + (lr - min_lr) * (1 + std::cos(std::numbers::pi * progress(warmup))) / 2;
  }
}

}  // namespace ela::trainer
