// What the coordinator shows to Prometheus: its calls, and the state of the jobs as the table has
// it in that moment.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/core.h"
#include "proto/program/http_server.h"

namespace ela::coordinator {

/// Thread-safe.
class Metrics {
 public:
  Metrics();
  void CountCall(const std::string& method, const absl::Status& status, double seconds);
  std::vector<prometheus::MetricFamily> Collect() const;

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Counter>& calls_;
  prometheus::Family<prometheus::Histogram>& durations_;
};

/// ela_job_state, ela_job_restarts_total, ela_job_goodput_ratio,
/// ela_rank_last_heartbeat_timestamp_seconds and the like. Ended jobs are shown while they are
/// among the newest hundred.
std::vector<prometheus::MetricFamily> CollectJobs(const Core& core);

/// /metrics; /sd, Prometheus http_sd: every rank of a running attempt, with job, job_name and rank
/// as labels; /healthz.
std::vector<HttpPage> MetricsPages(const Core* core, const Metrics* metrics);

}  // namespace ela::coordinator
