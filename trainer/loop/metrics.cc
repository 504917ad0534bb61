#include "trainer/loop/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "absl/strings/str_cat.h"
#include "proto/program/version.h"
#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

Histogram::BucketBoundaries Seconds() {
  return {1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
}

prometheus::Labels LeakLabels(const MetricsLabels& labels) {
  return {{"leaks_future", labels.leaks_future ? "true" : "false"}};
}

}  // namespace

struct TrainerMetrics::Families {
  Families(prometheus::Registry& r, const prometheus::Labels& l, const prometheus::Labels& leaks)
      : loss(BuildGauge()
                 .Name("ela_train_loss")
                 .Help("Training loss of the last step, balance loss included")
                 .Labels(l)
                 .Register(r)
                 .Add(leaks)),
        aux_loss(Single(r, l, "ela_train_aux_loss", "Balance loss of the last step")),
        eval_loss(BuildGauge()
                      .Name("ela_eval_loss")
                      .Help("Loss on the validation set, last evaluation")
                      .Labels(l)
                      .Register(r)),
        grad_norm(Single(r, l, "ela_train_grad_norm", "Norm of the gradient before clipping")),
        lr(Single(r, l, "ela_train_learning_rate", "Learning rate of the last step")),
        step(Single(r, l, "ela_train_step", "Last step that ended")),
        mfu(Single(
            r, l, "ela_train_mfu_ratio",
            "Model FLOP/s (a token: 6 x the parameters in products, 12 L H D a softmax layer) over "
            "the rate of matrix products measured at the start, all ranks")),
        checkpoint_bytes(Single(r, l, "ela_checkpoint_bytes",
                                "Tensor bytes of this rank's last checkpoint shard")),
        tokens(Count(r, l, "ela_train_tokens_total",
                     "Tokens of the global batches trained on, all ranks")),
        flops(Count(r, l, "ela_train_model_flops_total",
                    "Model FLOPs of the steps so far, all ranks")),
        skipped(Count(r, l, "ela_train_skipped_steps_total",
                      "Steps without an update: not finite, or a spike")),
        lost_checkpoints(Count(r, l, "ela_checkpoint_failures_total",
                               "Checkpoints that could not be written, as rank 0 counts them")),
        step_seconds(BuildHistogram()
                         .Name("ela_train_step_duration_seconds")
                         .Help("Wall time of a step")
                         .Labels(l)
                         .Register(r)
                         .Add({}, Seconds())),
        phase_seconds(
            BuildHistogram()
                .Name("ela_train_phase_duration_seconds")
                .Help("Time of a part of a step, by the device's clock where there is one")
                .Labels(l)
                .Register(r)),
        comm_seconds(BuildHistogram()
                         .Name("ela_comm_duration_seconds")
                         .Help("Time a step waited for communication")
                         .Labels(l)
                         .Register(r)),
        checkpoint_seconds(BuildHistogram()
                               .Name("ela_checkpoint_duration_seconds")
                               .Help("Time of a part of a checkpoint")
                               .Labels(l)
                               .Register(r)),
        comm_bytes(BuildCounter()
                       .Name("ela_comm_bytes_total")
                       .Help("Bytes received from other ranks")
                       .Labels(l)
                       .Register(r)),
        slow_path(BuildCounter()
                      .Name("ela_attention_slow_path_chunks_total")
                      .Help("Attention chunks that took the exact path for jumping keys")
                      .Labels(l)
                      .Register(r)),
        expert_load(BuildGauge()
                        .Name("ela_moe_expert_load_ratio")
                        .Help("Share of the routed slots of the last step that an expert got")
                        .Labels(l)
                        .Register(r)),
        memory_planned(BuildGauge()
                           .Name("ela_train_memory_planned_bytes")
                           .Help("Memory of this rank as planned before the start, by kind")
                           .Labels(l)
                           .Register(r)),
        memory_peak(BuildGauge()
                        .Name("ela_train_memory_peak_bytes")
                        .Help("The most that an arena has held, by kind")
                        .Labels(l)
                        .Register(r)),
        resident(Single(r, l, "ela_process_resident_memory_bytes",
                        "Memory of the process in use, after the last step")),
        last_success(BuildGauge()
                         .Name("ela_checkpoint_last_success_timestamp_seconds")
                         .Help("When the last checkpoint was committed")
                         .Labels(l)
                         .Register(r)) {
    BuildGauge()
        .Name("ela_build_info")
        .Help("Version of the program; always 1")
        .Labels(l)
        .Register(r)
        .Add({{"version", VersionNumber()}, {"program", "ela-trainer"}})
        .Set(1);
  }
  static Gauge& Single(prometheus::Registry& r, const prometheus::Labels& l, const char* name,
                       const char* help) {
    return BuildGauge().Name(name).Help(help).Labels(l).Register(r).Add({});
  }
  static Counter& Count(prometheus::Registry& r, const prometheus::Labels& l, const char* name,
                        const char* help) {
    return BuildCounter().Name(name).Help(help).Labels(l).Register(r).Add({});
  }

  Gauge &loss, &aux_loss;
  Family<Gauge>& eval_loss;  // without a value until the first evaluation
  Gauge &grad_norm, &lr, &step, &mfu, &checkpoint_bytes;
  Counter &tokens, &flops, &skipped, &lost_checkpoints;
  Histogram& step_seconds;
  Family<Histogram>&phase_seconds, &comm_seconds, &checkpoint_seconds;
  Family<Counter>&comm_bytes, &slow_path;
  Family<Gauge>&expert_load, &memory_planned, &memory_peak;
  Gauge& resident;
  Family<Gauge>& last_success;  // without a value until the first commit
};

TrainerMetrics::TrainerMetrics(const MetricsLabels& labels)
    : labels_(labels),
      registry_(std::make_shared<prometheus::Registry>()),
      families_(std::make_unique<Families>(
          *registry_,
          prometheus::Labels{
              {"job", labels.job}, {"rank", absl::StrCat(labels.rank)}, {"node", labels.node}},
          LeakLabels(labels))) {}

TrainerMetrics::~TrainerMetrics() = default;

absl::StatusOr<std::string> TrainerMetrics::Serve(const std::string& address) {
  ELA_ASSIGN_OR_RETURN(
      server_,
      HttpServer::Start(address, {{"/metrics", kPrometheusText, [this] { return Text(); }}}));
  return server_->address();
}

std::string TrainerMetrics::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

void TrainerMetrics::OnStep(const StepRecord& record, int64_t batch_tokens, double model_flops,
                            double mfu) {
  families_->loss.Set(record.loss);
  families_->aux_loss.Set(record.aux_loss);
  families_->grad_norm.Set(record.grad_norm);
  families_->lr.Set(record.lr);
  families_->step.Set(static_cast<double>(record.step));
  families_->tokens.Increment(static_cast<double>(batch_tokens));
  families_->flops.Increment(model_flops);
  families_->mfu.Set(mfu);
  families_->step_seconds.Observe(record.step_seconds);
}

void TrainerMetrics::OnSkippedStep() { families_->skipped.Increment(); }

void TrainerMetrics::OnEval(const EvalRecord& record) {
  families_->eval_loss.Add(LeakLabels(labels_)).Set(record.loss);
}

void TrainerMetrics::OnPhase(const std::string& phase, double seconds) {
  families_->phase_seconds.Add({{"phase", phase}}, Seconds()).Observe(seconds);
}

void TrainerMetrics::OnComm(const CommStatistics::Table& table) {
  for (const auto& [key, entry] : table) {
    const CommStatistics::Entry& last = last_comm_[key];
    if (entry.calls == last.calls) continue;
    const prometheus::Labels labels = {{"op", key.first}, {"axis", key.second}};
    families_->comm_bytes.Add(labels).Increment(static_cast<double>(entry.bytes - last.bytes));
    families_->comm_seconds.Add(labels, Seconds()).Observe(entry.seconds - last.seconds);
  }
  last_comm_ = table;
}

void TrainerMetrics::OnRouting(const RoutingStatistics& routing) {
  for (int64_t l = 0; l < routing.layers; ++l) {
    const int64_t* counts = routing.counts.data() + l * routing.experts;
    int64_t slots = 0;
    for (int64_t e = 0; e < routing.experts; ++e) slots += counts[e];
    for (int64_t e = 0; slots > 0 && e < routing.experts; ++e) {
      families_->expert_load.Add({{"layer", absl::StrCat(l)}, {"expert", absl::StrCat(e)}})
          .Set(static_cast<double>(counts[e]) / static_cast<double>(slots));
    }
  }
}

void TrainerMetrics::OnSlowPath(int64_t layer, int64_t chunks) {
  families_->slow_path.Add({{"layer", absl::StrCat(layer)}}).Increment(static_cast<double>(chunks));
}

void TrainerMetrics::OnCheckpoint(const std::string& op, double seconds) {
  families_->checkpoint_seconds.Add({{"op", op}}, Seconds()).Observe(seconds);
}

void TrainerMetrics::OnCheckpointBytes(int64_t bytes) {
  families_->checkpoint_bytes.Set(static_cast<double>(bytes));
}

void TrainerMetrics::OnCommitted(int64_t unix_ms) {
  families_->last_success.Add({}).Set(static_cast<double>(unix_ms) / 1000);
}

void TrainerMetrics::OnLostCheckpoint() { families_->lost_checkpoints.Increment(); }

void TrainerMetrics::OnMemoryPlan(const job::MemoryPlan& plan) {
  const std::pair<const char*, int64_t> kinds[] = {
      {"parameters", plan.parameters}, {"gradients", plan.gradients},
      {"optimizer", plan.optimizer},   {"activations", plan.activations},
      {"workspace", plan.workspace},   {"staging", plan.staging}};
  for (const auto& [kind, bytes] : kinds) {
    families_->memory_planned.Add({{"kind", kind}}).Set(static_cast<double>(bytes));
  }
}

void TrainerMetrics::OnMemory(int64_t activations_peak, int64_t workspace_peak, int64_t resident) {
  families_->memory_peak.Add({{"kind", "activations"}}).Set(static_cast<double>(activations_peak));
  families_->memory_peak.Add({{"kind", "workspace"}}).Set(static_cast<double>(workspace_peak));
  families_->resident.Set(static_cast<double>(resident));
}

}  // namespace ela::trainer
