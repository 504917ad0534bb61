#include "trainer/loop/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace ela::trainer {
namespace {

using testing::HasSubstr;
using testing::Not;

MetricsLabels Rank1() { return {.job = "j-1", .node = "n0", .rank = 1}; }

TEST(TrainerMetricsTest, EveryMetricCarriesJobRankAndNode) {
  TrainerMetrics metrics(Rank1());
  metrics.OnStep({.step = 7, .loss = 2.5}, 512, 1e9, 0.25);
  EXPECT_THAT(metrics.Text(), HasSubstr("ela_train_step{job=\"j-1\",node=\"n0\",rank=\"1\"} 7"));
  EXPECT_THAT(metrics.Text(),
              HasSubstr("ela_train_tokens_total{job=\"j-1\",node=\"n0\",rank=\"1\"} 512"));
}

TEST(TrainerMetricsTest, ALossThatLeaksSaysSo) {
  MetricsLabels labels = Rank1();
  labels.leaks_future = true;
  TrainerMetrics leaking(labels), sound(Rank1());
  for (TrainerMetrics* metrics : {&leaking, &sound}) {
    metrics->OnStep({.step = 1, .loss = 2.5}, 512, 1e9, 0.25);
    metrics->OnEval({.step = 1, .loss = 2.75});
  }
  EXPECT_THAT(leaking.Text(), HasSubstr("leaks_future=\"true\"} 2.5"));
  EXPECT_THAT(leaking.Text(), HasSubstr("leaks_future=\"true\"} 2.75"));
  EXPECT_THAT(leaking.Text(), Not(HasSubstr("leaks_future=\"false\"")));
  EXPECT_THAT(sound.Text(), HasSubstr("leaks_future=\"false\"} 2.75"));
}

TEST(TrainerMetricsTest, WhatHasNotHappenedHasNoValue) {
  const std::string text = TrainerMetrics(Rank1()).Text();
  EXPECT_THAT(text, Not(HasSubstr("ela_eval_loss{")));
  EXPECT_THAT(text, Not(HasSubstr("ela_checkpoint_last_success_timestamp_seconds{")));
}

TEST(TrainerMetricsTest, LostCheckpointsAreCountedFromZero) {
  TrainerMetrics metrics(Rank1());
  const std::string series = "ela_checkpoint_failures_total{job=\"j-1\",node=\"n0\",rank=\"1\"} ";
  EXPECT_THAT(metrics.Text(), HasSubstr(series + "0"));
  metrics.OnLostCheckpoint();
  EXPECT_THAT(metrics.Text(), HasSubstr(series + "1"));
}

TEST(TrainerMetricsTest, CommunicationIsCountedOnceThoughTheTableGrows) {
  TrainerMetrics metrics(Rank1());
  CommStatistics statistics;
  for (int step = 0; step < 2; ++step) {
    statistics.Add("all_gather", "sequence", /*calls=*/1, /*bytes=*/100, /*seconds=*/0.5);
    metrics.OnComm(statistics.Snapshot());
  }
  metrics.OnComm(statistics.Snapshot());  // a step without communication
  const std::string series =
      "{job=\"j-1\",node=\"n0\",rank=\"1\",axis=\"sequence\",op=\"all_gather\"} ";
  EXPECT_THAT(metrics.Text(), HasSubstr("ela_comm_bytes_total" + series + "200"));
  EXPECT_THAT(metrics.Text(), HasSubstr("ela_comm_duration_seconds_sum" + series + "1"));
  EXPECT_THAT(metrics.Text(), HasSubstr("ela_comm_duration_seconds_count" + series + "2"));
}

TEST(TrainerMetricsTest, LoadRatiosOfALayerSumToOne) {
  TrainerMetrics metrics(Rank1());
  RoutingStatistics routing(/*num_layers=*/1, /*num_experts=*/2);
  routing.counts = {30, 10};
  metrics.OnRouting(routing);
  EXPECT_THAT(metrics.Text(), HasSubstr("expert=\"0\",layer=\"0\"} 0.75"));
  EXPECT_THAT(metrics.Text(), HasSubstr("expert=\"1\",layer=\"0\"} 0.25"));
}

TEST(TrainerMetricsTest, PlannedMemoryStandsByKind) {
  TrainerMetrics metrics(Rank1());
  metrics.OnMemoryPlan({.parameters = 64, .optimizer = 128});
  metrics.OnMemory(/*activations_peak=*/10, /*workspace_peak=*/20, /*resident=*/4096);
  EXPECT_THAT(metrics.Text(), HasSubstr("kind=\"optimizer\"} 128"));
  EXPECT_THAT(metrics.Text(), HasSubstr("kind=\"workspace\"} 20"));
  EXPECT_THAT(metrics.Text(), HasSubstr("ela_process_resident_memory_bytes{"));
}

}  // namespace
}  // namespace ela::trainer
