#include "coordinator/metrics/metrics.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/lifecycle.h"
#include "nlohmann/json.hpp"

namespace ela::coordinator {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr size_t kEndedJobsShown = 100;

MetricFamily Family(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void AddValue(MetricFamily* family, double value,
              std::vector<std::pair<std::string, std::string>> labels) {
  ClientMetric metric;
  for (auto& [name, text] : labels) metric.label.push_back({name, text});
  if (family->type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family->metric.push_back(std::move(metric));
}

/// Attempts that failed, by how they ended.
std::map<std::string, int> Restarts(const v1::Job& job) {
  std::map<std::string, int> restarts;
  for (int i = 0; i + 1 < job.attempts_size();
       ++i) {  // the last attempt was not followed by another
    ++restarts[absl::AsciiStrToLower(OutcomeName(job.attempts(i).outcome()))];
  }
  return restarts;
}

/// Share of the time since the first launch that went into steps that were kept.
double Goodput(const v1::Job& job, double productive_seconds, int64_t now_unix_ms) {
  if (job.attempts_size() == 0) return 0;
  const int64_t end = job.ended_unix_ms() != 0 ? job.ended_unix_ms() : now_unix_ms;
  const double seconds = static_cast<double>(end - job.attempts(0).started_unix_ms()) / 1000;
  return seconds > 0 ? std::clamp(productive_seconds / seconds, 0.0, 1.0) : 0;
}

std::vector<RecordPtr> ShownJobs(const Core& core) {
  std::vector<RecordPtr> shown;
  size_t ended = 0;
  std::vector<RecordPtr> all = core.jobs->All();
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    if (IsTerminal((*it)->job().state()) && ++ended > kEndedJobsShown) continue;
    shown.push_back(*it);
  }
  return shown;
}

}  // namespace

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      calls_(prometheus::BuildCounter()
                 .Name("ela_rpc_requests_total")
                 .Help("Calls answered, by method and status code")
                 .Register(*registry_)),
      durations_(prometheus::BuildHistogram()
                     .Name("ela_rpc_duration_seconds")
                     .Help("Time from the arrival of a call to its answer")
                     .Register(*registry_)) {
  prometheus::BuildGauge()
      .Name("ela_build_info")
      .Help("Always 1; the labels say what runs")
      .Register(*registry_)
      .Add({{"version", ELA_VERSION}, {"commit", ELA_COMMIT}, {"program", "ela-coordinator"}})
      .Set(1);
}

void Metrics::CountCall(const std::string& method, const absl::Status& status, double seconds) {
  calls_.Add({{"method", method}, {"code", absl::StatusCodeToString(status.code())}}).Increment();
  durations_
      .Add({{"method", method}},
           prometheus::Histogram::BucketBoundaries{0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10})
      .Observe(seconds);
}

std::vector<MetricFamily> Metrics::Collect() const { return registry_->Collect(); }

std::vector<MetricFamily> CollectJobs(const Core& core) {
  MetricFamily state =
      Family("ela_job_state", "1 for the state that the job is in", MetricType::Gauge);
  MetricFamily restarts =
      Family("ela_job_restarts_total", "Attempts that another one followed, by how they ended",
             MetricType::Counter);
  MetricFamily goodput = Family(
      "ela_job_goodput_ratio",
      "Share of the time since the first launch spent in steps that were kept", MetricType::Gauge);
  MetricFamily checkpoint = Family("ela_job_last_checkpoint_step",
                                   "Step of the last committed checkpoint", MetricType::Gauge);
  MetricFamily heartbeat = Family("ela_rank_last_heartbeat_timestamp_seconds",
                                  "When the rank was last heard", MetricType::Gauge);
  MetricFamily slots = Family("ela_coordinator_slots", "Slots of this machine", MetricType::Gauge);
  MetricFamily used =
      Family("ela_coordinator_used_slots", "Slots that jobs hold", MetricType::Gauge);
  const Instant now = core.jobs->Now();
  double used_slots = 0;
  for (const RecordPtr& record : ShownJobs(core)) {
    const v1::Job job = core.jobs->View(*record);
    const std::string& name = job.spec().metadata().name();
    AddValue(&state, 1,
             {{"job", job.id()},
              {"name", name},
              {"state", absl::AsciiStrToLower(StateName(job.state()))}});
    for (const auto& [reason, count] : Restarts(job)) {
      AddValue(&restarts, count, {{"job", job.id()}, {"reason", reason}});
    }
    double productive = 0;
    core.jobs->ReadLive(job.id(), [&](const Live& live) { productive = live.productive_seconds; });
    AddValue(&goodput, Goodput(job, productive, now.unix_ms), {{"job", job.id()}});
    AddValue(&checkpoint, static_cast<double>(job.progress().last_checkpoint_step()),
             {{"job", job.id()}});
    if (!HoldsSlots(job.state())) continue;
    used_slots += record->ranks();
    for (const v1::RankInfo& rank : job.attempts(job.attempts_size() - 1).ranks()) {
      AddValue(&heartbeat, static_cast<double>(rank.last_heartbeat_unix_ms()) / 1000,
               {{"job", job.id()}, {"rank", absl::StrCat(rank.rank())}, {"node", rank.host()}});
    }
  }
  AddValue(&slots, static_cast<double>(core.settings.slots), {});
  AddValue(&used, used_slots, {});
  std::vector<MetricFamily> families;
  for (MetricFamily* family :
       {&state, &restarts, &goodput, &checkpoint, &heartbeat, &slots, &used}) {
    if (!family->metric.empty()) families.push_back(std::move(*family));
  }
  return families;
}

std::string ServiceDiscovery(const Core& core) {
  nlohmann::json targets = nlohmann::json::array();
  for (const RecordPtr& record : core.jobs->Unfinished()) {
    const v1::Attempt* active = ActiveAttempt(*record);
    if (active == nullptr) continue;
    for (const v1::RankInfo& rank : active->ranks()) {
      if (rank.metrics_address().empty()) continue;
      targets.push_back({{"targets", {rank.metrics_address()}},
                         {"labels",
                          {{"job", record->job().id()},
                           {"job_name", record->job().spec().metadata().name()},
                           {"rank", absl::StrCat(rank.rank())},
                           {"node", rank.host()}}}});
    }
  }
  return targets.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace ela::coordinator
