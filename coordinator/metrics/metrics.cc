#include "coordinator/metrics/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/lifecycle.h"
#include "nlohmann/json.hpp"
#include "proto/program/version.h"

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

using Labels = std::vector<std::pair<std::string, std::string>>;

double Seconds(int64_t unix_ms) { return static_cast<double>(unix_ms) / 1000; }

void AddValue(MetricFamily* family, double value, const Labels& labels) {
  ClientMetric metric;
  for (const auto& [name, text] : labels) metric.label.push_back({name, text});
  if (family->type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family->metric.push_back(std::move(metric));
}

/// Attempts that another one followed, by how they ended. The common ends are there from the start,
/// at 0: a rate over a counter that appears at 1 is 0.
std::map<std::string, int> Restarts(const v1::Job& job) {
  std::map<std::string, int> restarts = {{"hang", 0}, {"infra", 0}, {"preempted", 0}};
  for (int i = 0; i + 1 < job.attempts_size(); ++i) {  // nothing followed the last one
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

/// The families that are made of the job table.
struct JobFamilies {
  static constexpr MetricType kGauge = MetricType::Gauge;

  MetricFamily state = Family("ela_job_state", "1 for the state that the job is in", kGauge);
  MetricFamily restarts =
      Family("ela_job_restarts_total", "Attempts that another one followed, by how they ended",
             MetricType::Counter);
  MetricFamily attempts = Family("ela_job_attempts", "Attempts so far", kGauge);
  MetricFamily goodput =
      Family("ela_job_goodput_ratio",
             "Share of the time since the first launch spent in steps that were kept", kGauge);
  MetricFamily step = Family("ela_job_step", "Last step that was reported", kGauge);
  MetricFamily target = Family("ela_job_target_steps", "Steps that the job asks for", kGauge);
  MetricFamily ranks = Family("ela_job_ranks", "Ranks that the job runs with", kGauge);
  MetricFamily created =
      Family("ela_job_created_timestamp_seconds", "When it was submitted", kGauge);
  MetricFamily ended =
      Family("ela_job_ended_timestamp_seconds", "When it ended; ended jobs", kGauge);
  MetricFamily checkpoint =
      Family("ela_job_last_checkpoint_step", "Step of the last committed checkpoint", kGauge);
  MetricFamily checkpoint_time = Family("ela_job_last_checkpoint_timestamp_seconds",
                                        "When the last checkpoint was committed", kGauge);
  MetricFamily checkpoint_every =
      Family("ela_job_checkpoint_interval_steps", "Steps from one checkpoint to the next", kGauge);
  MetricFamily eta = Family("ela_job_eta_seconds",
                            "Time left at the mean speed of the last steps; running jobs", kGauge);
  MetricFamily contact_lost = Family(
      "ela_job_contact_lost", "1 while a running job has not been heard for too long", kGauge);
  MetricFamily heartbeat =
      Family("ela_rank_last_heartbeat_timestamp_seconds", "When the rank was last heard", kGauge);

  void Add(const Core& core, const v1::JobRecord& record);
  void AddRunning(const v1::Job& job);
  std::vector<MetricFamily> Take();
};

void JobFamilies::Add(const Core& core, const v1::JobRecord& record) {
  const v1::Job job = core.jobs->View(record);
  const Labels id = {{"job", job.id()}};
  AddValue(&state, 1,
           {{"job", job.id()},
            {"name", job.spec().metadata().name()},
            {"state", absl::AsciiStrToLower(StateName(job.state()))}});
  for (const auto& [reason, count] : Restarts(job)) {
    AddValue(&restarts, count, {{"job", job.id()}, {"reason", reason}});
  }
  double productive = 0;
  core.jobs->ReadLive(job.id(), [&](const Live& live) { productive = live.productive_seconds; });
  AddValue(&goodput, Goodput(job, productive, core.jobs->Now().unix_ms), id);
  AddValue(&attempts, job.attempts_size(), id);
  AddValue(&step, static_cast<double>(job.progress().step()), id);
  AddValue(&target, static_cast<double>(job.spec().spec().training().steps()), id);
  AddValue(&ranks, record.ranks(), id);
  AddValue(&created, Seconds(job.created_unix_ms()), id);
  if (job.ended_unix_ms() != 0) AddValue(&ended, Seconds(job.ended_unix_ms()), id);
  AddValue(&checkpoint, static_cast<double>(job.progress().last_checkpoint_step()), id);
  AddValue(&checkpoint_every, static_cast<double>(job.spec().spec().checkpoint().every_steps()),
           id);
  if (job.progress().last_checkpoint_unix_ms() != 0) {
    AddValue(&checkpoint_time, Seconds(job.progress().last_checkpoint_unix_ms()), id);
  }
  if (HoldsSlots(job.state()) && job.attempts_size() > 0) AddRunning(job);
}

void JobFamilies::AddRunning(const v1::Job& job) {
  const Labels id = {{"job", job.id()}};
  AddValue(&contact_lost, job.contact_lost_unix_ms() != 0, id);
  if (job.progress().eta_seconds() > 0) AddValue(&eta, job.progress().eta_seconds(), id);
  for (const v1::RankInfo& rank : job.attempts(job.attempts_size() - 1).ranks()) {
    if (rank.last_heartbeat_unix_ms() == 0) continue;  // not heard yet
    AddValue(&heartbeat, Seconds(rank.last_heartbeat_unix_ms()),
             {{"job", job.id()}, {"rank", absl::StrCat(rank.rank())}, {"node", rank.host()}});
  }
}

std::vector<MetricFamily> JobFamilies::Take() {
  std::vector<MetricFamily> families;
  for (MetricFamily* family :
       {&state, &restarts, &attempts, &goodput, &step, &target, &ranks, &created, &ended,
        &checkpoint, &checkpoint_time, &checkpoint_every, &eta, &contact_lost, &heartbeat}) {
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
      .Add({{"version", VersionNumber()},
            {"commit", VersionCommit()},
            {"program", "ela-coordinator"}})
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
  JobFamilies jobs;
  for (const RecordPtr& record : ShownJobs(core)) jobs.Add(core, *record);
  std::vector<MetricFamily> families = jobs.Take();
  double used = 0;
  for (const RecordPtr& record : core.jobs->Unfinished()) {
    if (HoldsSlots(record->job().state())) used += record->ranks();
  }
  families.push_back(Family("ela_coordinator_slots", "Slots of this machine", MetricType::Gauge));
  AddValue(&families.back(), static_cast<double>(core.settings.slots), {});
  families.push_back(
      Family("ela_coordinator_used_slots", "Slots that jobs hold", MetricType::Gauge));
  AddValue(&families.back(), used, {});
  return families;
}

std::vector<HttpPage> MetricsPages(const Core* core, const Metrics* metrics) {
  const auto text = [=] {
    std::vector<MetricFamily> families = metrics->Collect();
    for (MetricFamily& family : CollectJobs(*core)) families.push_back(std::move(family));
    return prometheus::TextSerializer().Serialize(families);
  };
  return {{"/metrics", kPrometheusText, text},
          {"/sd", "application/json", [=] { return ServiceDiscovery(*core); }},
          {"/healthz", "text/plain", [] { return std::string("ok\n"); }}};
}

}  // namespace ela::coordinator
