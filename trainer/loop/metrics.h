// What a rank shows to Prometheus (architecture.md, Metrics): its own registry, served on loopback
// or, with ELA_METRICS_ADDRESS, on that address. Ranks are found through the coordinator's http_sd.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/job/plan.h"
#include "proto/program/http_server.h"
#include "trainer/loop/run_folder.h"
#include "trainer/model/decoder.h"
#include "trainer/parallel/communicator.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
template <class T>
class Family;
}  // namespace prometheus

namespace ela::trainer {

struct MetricsLabels {
  std::string job, node;
  int rank = 0;
  bool leaks_future = false;  // the losses are those of a model that sees its targets: they say so
};

class TrainerMetrics {
 public:
  explicit TrainerMetrics(const MetricsLabels& labels);
  ~TrainerMetrics();

  /// Serves /metrics on `address` ("127.0.0.1:0": any port). Returns host:port.
  absl::StatusOr<std::string> Serve(const std::string& address);
  /// The text of /metrics.
  std::string Text() const;

  /// `batch_tokens`: tokens of the step's global batch; `model_flops` of the step on all ranks;
  /// `mfu`: model FLOP/s over the measured rate of products.
  void OnStep(const StepRecord& record, int64_t batch_tokens, double model_flops, double mfu);
  void OnSkippedStep();
  void OnEval(const EvalRecord& record);
  /// Where a step's time went (PhaseClock): "data", "forward_backward", "reduce", "update",
  /// "checkpoint", "eval".
  void OnPhase(const std::string& phase, double seconds);
  void OnComm(const CommStatistics::Table& table);
  void OnRouting(const RoutingStatistics& routing);
  void OnSlowPath(int64_t layer, int64_t chunks);
  /// op: "snapshot" (what the training waits for), "write", "commit", "load".
  void OnCheckpoint(const std::string& op, double seconds);
  void OnCheckpointBytes(int64_t bytes);
  void OnCommitted(int64_t unix_ms);
  void OnLostCheckpoint();
  /// What the rank was planned to take.
  void OnMemoryPlan(const job::MemoryPlan& plan);
  /// What it takes: the most that each arena has held, and the process as the kernel counts it.
  void OnMemory(int64_t activations_peak, int64_t workspace_peak, int64_t resident);

 private:
  struct Families;
  MetricsLabels labels_;
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<Families> families_;
  CommStatistics::Table last_comm_;
  std::unique_ptr<HttpServer> server_;  // last: its pages read the others
};

}  // namespace ela::trainer
