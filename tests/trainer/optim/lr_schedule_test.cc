#include "trainer/optim/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ela::trainer {
namespace {

LrSchedule Schedule(v1::LrSchedule type, int64_t warmup, int64_t steps) {
  return {.type = type,
          .lr = 0.8,
          .min_lr = 0.2,
          .warmup_steps = warmup,
          .steps = steps,
          .decay_fraction = 0.25};
}

constexpr v1::LrSchedule kTypes[] = {v1::LR_SCHEDULE_COSINE, v1::LR_SCHEDULE_LINEAR,
                                     v1::LR_SCHEDULE_WSD, v1::LR_SCHEDULE_CONSTANT};

TEST(LrSchedule, WarmsUpInAStraightLineFromTheFirstStep) {
  for (const v1::LrSchedule type : kTypes) {
    const LrSchedule schedule = Schedule(type, 10, 100);
    EXPECT_DOUBLE_EQ(LearningRate(schedule, 1), 0.08);
    EXPECT_DOUBLE_EQ(LearningRate(schedule, 5), 0.4);
    EXPECT_DOUBLE_EQ(LearningRate(schedule, 10), 0.8);
  }
}

TEST(LrSchedule, EndsAtTheMinimumAndStaysThere) {
  for (const v1::LrSchedule type : kTypes) {
    const double end = type == v1::LR_SCHEDULE_CONSTANT ? 0.8 : 0.2;
    for (const int64_t t : {100, 101, 1000000}) {
      EXPECT_NEAR(LearningRate(Schedule(type, 10, 100), t), end, 1e-15) << type << " " << t;
    }
  }
}

TEST(LrSchedule, CosineFollowsItsClosedForm) {
  const LrSchedule schedule = Schedule(v1::LR_SCHEDULE_COSINE, 10, 110);
  EXPECT_NEAR(LearningRate(schedule, 60), 0.5, 1e-15);  // half way: the mean of both ends
  EXPECT_NEAR(LearningRate(schedule, 35), 0.2 + 0.6 * (1 + std::sqrt(0.5)) / 2, 1e-15);
  EXPECT_NEAR(LearningRate(schedule, 85), 0.2 + 0.6 * (1 - std::sqrt(0.5)) / 2, 1e-15);
}

TEST(LrSchedule, LinearFollowsItsClosedForm) {
  const LrSchedule schedule = Schedule(v1::LR_SCHEDULE_LINEAR, 10, 110);
  for (int64_t t = 11; t <= 110; ++t) {
    EXPECT_NEAR(LearningRate(schedule, t), 0.8 - 0.006 * static_cast<double>(t - 10), 1e-14);
  }
}

TEST(LrSchedule, WsdStaysAndThenFallsInAStraightLine) {
  const LrSchedule schedule = Schedule(v1::LR_SCHEDULE_WSD, 10, 200);  // falls over the last 50
  for (int64_t t = 10; t <= 150; ++t) EXPECT_EQ(LearningRate(schedule, t), 0.8) << t;
  EXPECT_NEAR(LearningRate(schedule, 151), 0.788, 1e-15);
  EXPECT_NEAR(LearningRate(schedule, 175), 0.5, 1e-15);
}

TEST(LrSchedule, WsdFallsNoEarlierThanTheWarmUpEnds) {
  LrSchedule schedule = Schedule(v1::LR_SCHEDULE_WSD, 60, 100);
  schedule.decay_fraction = 1;
  EXPECT_EQ(LearningRate(schedule, 60), 0.8);
  EXPECT_NEAR(LearningRate(schedule, 80), 0.5, 1e-15);
}

TEST(LrSchedule, WsdWithoutAFallIsConstant) {
  LrSchedule schedule = Schedule(v1::LR_SCHEDULE_WSD, 0, 100);
  schedule.decay_fraction = 0;
  for (const int64_t t : {1, 50, 100, 200}) EXPECT_EQ(LearningRate(schedule, t), 0.8) << t;
}

TEST(LrSchedule, IsFiniteWhereThePhasesAreEmpty) {
  for (const v1::LrSchedule type : kTypes) {
    for (const auto& [warmup, steps] :
         {std::pair<int64_t, int64_t>{0, 1}, {1, 1}, {5, 5}, {9, 5}, {0, 2}}) {
      for (int64_t t = 1; t <= 10; ++t) {
        const double lr = LearningRate(Schedule(type, warmup, steps), t);
        EXPECT_TRUE(lr > 0 && lr <= 0.8) << type << " " << warmup << " " << steps << " " << t;
      }
    }
  }
}

TEST(LrSchedule, ComesFromTheJob) {
  v1::JobSpec spec;
  spec.mutable_optimizer()->set_lr(0.5);
  spec.mutable_training()->set_steps(77);
  spec.mutable_lr_scheduler()->set_type(v1::LR_SCHEDULE_WSD);
  spec.mutable_lr_scheduler()->set_warmup_steps(7);
  spec.mutable_lr_scheduler()->set_min_lr(0.125);
  spec.mutable_lr_scheduler()->set_decay_fraction(0.5);
  const LrSchedule schedule = MakeLrSchedule(spec);
  EXPECT_EQ(LearningRate(schedule, 7), 0.5);
  EXPECT_EQ(LearningRate(schedule, 38), 0.5);
  EXPECT_LT(LearningRate(schedule, 39), 0.5);  // 77 - round(0.5 x 77)
  EXPECT_EQ(LearningRate(schedule, 77), 0.125);
}

}  // namespace
}  // namespace ela::trainer
