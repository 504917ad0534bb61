#include "tests/trainer/model/model_testing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/parallel/local_communicator.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {

using kernels::Backend;
using kernels::DType;
using kernels::Tensor;

namespace {

constexpr char kTiny[] = R"(apiVersion: ela/v1
kind: TrainingJob
metadata: {name: tiny}
spec:
  model:
    vocab_size: 31
    hidden_size: 16
    num_layers: 2
    num_attention_heads: 2
    moe: {num_experts: 4, top_k: 2, intermediate_size: 8}
  data:
    train: [{path: /data/a}]
    seq_len: 12
  training: {steps: 10, global_batch_size: 2}
)";

uint64_t StreamOf(const std::string& name) { return std::hash<std::string>()(name) | 1; }

std::vector<double> ToDoubles(const Tensor& t) {
  const Tensor flat = t.View({t.numel()});
  std::vector<double> values(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (t.dtype() == DType::kF64) values[i] = flat.as<double>()[i];
    if (t.dtype() == DType::kF32) values[i] = static_cast<double>(flat.as<float>()[i]);
    if (t.dtype() == DType::kBf16) values[i] = static_cast<float>(flat.as<kernels::Bf16>()[i]);
  }
  return values;
}

/// The stand-in for the balance loss: a weight for each probability.
std::vector<double> ProbabilityWeights(const v1::ModelSpec& model) {
  std::vector<double> weights;
  for (int64_t i = 0; i < model.num_layers() * model.moe().num_experts(); ++i) {
    weights.push_back(0.01 * std::sin(static_cast<double>(3 * i + 1)));
  }
  return weights;
}

double ProbabilityTerm(const v1::ModelSpec& model, const std::vector<double>& prob_sums) {
  const std::vector<double> weights = ProbabilityWeights(model);
  return std::inner_product(weights.begin(), weights.end(), prob_sums.begin(), 0.0);
}

StoreOptions StoreOptionsOf(Backend backend, DType element) {
  StoreOptions options;
  options.dtype = backend == Backend::kReference ? DType::kF64 : element;
  return options;
}

kernels::Context ContextOf(Backend backend, int num_threads, kernels::Arena* scratch,
                           kernels::Counters* counters) {
  kernels::Context ctx;
  ctx.backend = backend;
  ctx.num_threads = num_threads;
  ctx.scratch = scratch;
  ctx.counters = counters;
  return ctx;
}

DecoderOptions DecoderOptionsOf(const v1::TrainingJob& job) {
  DecoderOptions options;
  options.recompute_layers = job::RecomputedLayers(job.spec());
  options.causal = job.spec().training().objective() != v1::OBJECTIVE_MASKED_TOKEN;
  return options;
}

absl::Status SumGradients(Communicator& group, const Tensor& flat) {
  if (flat.dtype() == DType::kF64) return AllReduceSum(group, flat.as<double>(), flat.numel());
  return AllReduceSum(group, flat.as<float>(), flat.numel());
}

/// One rank's part of RunModel.
class Rank {
 public:
  Rank(const v1::TrainingJob& job, const Documents& documents, const Passes& passes,
       const Mesh& mesh, Outcome* out, std::mutex* out_mutex)
      : job_(job),
        model_(job.spec().model()),
        documents_(documents),
        mesh_(mesh),
        divisor_(passes.divisor),
        out_(out),
        out_mutex_(out_mutex),
        layer_(
            MakeLayerContext(ContextOf(passes.backend, passes.num_threads, &scratch_, &counters_),
                             &saved_, passes.element)),
        store_(job::Parameters(model_), mesh, StoreOptionsOf(passes.backend, passes.element)),
        decoder_(model_, &store_, &mesh, DecoderOptionsOf(job)) {
    sequences_ = documents.sequences() / mesh.sizes().data;
    first_ = sequences_ * mesh.data_index();
    const int shards = mesh.sizes().sequence, shard = mesh.sequence_index();
    begin_ = ShardBegin(documents.length, shard, shards);
    rows_ = TokenRows(SliceOf(documents, first_, sequences_, begin_,
                              ShardBegin(documents.length, shard + 1, shards)),
                      documents.length, shard, shards);
  }

  absl::Status Run(const ParameterSource& parameters, bool backward) {
    ELA_RETURN_IF_ERROR(store_.Fill(parameters));
    store_.ZeroGrads();
    int64_t targets = rows_.valid_targets();
    ELA_RETURN_IF_ERROR(AllReduceSum(mesh_.world(), &targets, 1));
    const double scale = 1.0 / static_cast<double>(divisor_ > 0 ? divisor_ : targets);
    RoutingStatistics routing(model_.num_layers(), model_.moe().num_experts());
    ELA_RETURN_IF_ERROR(decoder_.Forward(layer_, rows_, &routing));
    GiveFeatures();
    double loss_sum = 0;
    if (backward) {
      ELA_RETURN_IF_ERROR(Backward(scale, &loss_sum));
    } else {
      decoder_.Loss(layer_, rows_, &loss_sum);
      decoder_.Forget(layer_);
    }
    return GiveLoss(scale, loss_sum, &routing);
  }

 private:
  absl::Status Backward(double scale, double* loss_sum) {
    const kernels::ArenaScope scope(&scratch_);
    const Tensor dprobs = layer_.ScratchStatistic({model_.num_layers(), model_.moe().num_experts()},
                                                  ProbabilityWeights(model_));
    ELA_RETURN_IF_ERROR(decoder_.Backward(layer_, rows_, scale, dprobs, loss_sum));
    ELA_RETURN_IF_ERROR(SumGradients(mesh_.world(), store_.flat_grads(ParameterClass::kDense)));
    ELA_RETURN_IF_ERROR(
        SumGradients(mesh_.expert_data(), store_.flat_grads(ParameterClass::kExpert)));
    const std::lock_guard<std::mutex> lock(*out_mutex_);
    for (ParameterClass cls : kParameterClasses) {
      for (const ParameterSegment& segment : store_.segments(cls)) {
        out_->grads[segment.info.name] = ToDoubles(store_.grad(segment.info.name));
      }
    }
    return absl::OkStatus();
  }

  /// Rows of this rank to their places in the global batch.
  void GiveFeatures() {
    const kernels::ArenaScope scope(&scratch_);
    const Tensor logprobs = layer_.ScratchStatistic({rows_.count()});
    decoder_.Logprobs(layer_, rows_, logprobs);
    const std::vector<double> features = ToDoubles(decoder_.features());
    const std::vector<double> words = ToDoubles(logprobs);
    const int64_t d = model_.hidden_size(), length = rows_.count() / sequences_;
    const std::lock_guard<std::mutex> lock(*out_mutex_);
    out_->features.resize(documents_.ids.size() * static_cast<size_t>(d));
    out_->logprobs.resize(documents_.ids.size());
    for (int64_t b = 0; b < sequences_; ++b) {
      const int64_t to = (first_ + b) * documents_.length + begin_;
      std::copy_n(features.begin() + b * length * d, length * d, out_->features.begin() + to * d);
      std::copy_n(words.begin() + b * length, length, out_->logprobs.begin() + to);
    }
  }

  absl::Status GiveLoss(double scale, double loss_sum, RoutingStatistics* routing) {
    ELA_RETURN_IF_ERROR(AllReduceSum(mesh_.world(), &loss_sum, 1));
    ELA_RETURN_IF_ERROR(AllReduceSum(mesh_.world(), routing->prob_sums.data(),
                                     static_cast<int64_t>(routing->prob_sums.size())));
    ELA_RETURN_IF_ERROR(AllReduceSum(mesh_.world(), routing->counts.data(),
                                     static_cast<int64_t>(routing->counts.size())));
    const std::lock_guard<std::mutex> lock(*out_mutex_);
    out_->loss = scale * loss_sum + ProbabilityTerm(model_, routing->prob_sums);
    out_->expert_counts = routing->counts;
    out_->saved_bytes = std::max(out_->saved_bytes, saved_.peak_bytes());
    out_->scratch_bytes = std::max(out_->scratch_bytes, scratch_.peak_bytes());
    return absl::OkStatus();
  }

  const v1::TrainingJob& job_;
  const v1::ModelSpec& model_;
  const Documents& documents_;
  const Mesh& mesh_;
  int64_t divisor_;
  Outcome* out_;
  std::mutex* out_mutex_;
  kernels::Arena scratch_, saved_;
  kernels::Counters counters_;
  LayerContext layer_;
  ParameterStore store_;
  Decoder decoder_;
  TokenRows rows_;
  int64_t sequences_ = 0, first_ = 0, begin_ = 0;
};

}  // namespace

v1::TrainingJob TinyJob(const std::vector<std::string>& sets) {
  auto job = job::ParseJob(kTiny, "tiny.yaml");
  EXPECT_TRUE(job.ok()) << job.status();
  for (const std::string& set : sets) {
    const absl::Status status = job::ApplySet(set, &*job);
    EXPECT_TRUE(status.ok()) << status;
  }
  return job::Resolve(*job, "");
}

ParameterSource WideValues(uint64_t seed, ChangeElement change) {
  return
      [seed, change](const job::ParameterInfo& parameter, int64_t begin, int64_t end, float* out) {
        const bool matrix = parameter.shape.size() > 1;
        const bool gain = !matrix && !parameter.name.ends_with(".bias");
        for (int64_t i = begin; i < end; ++i) {
          const double x = CounterNormal(seed, StreamOf(parameter.name), static_cast<uint64_t>(i));
          float value = static_cast<float>((gain ? 1 : 0) + (matrix ? 0.3 : 0.2) * x);
          if (change) value = change(parameter.name, i, value);
          *out++ = value;
        }
        return absl::OkStatus();
      };
}

Documents RandomDocuments(int64_t length, const DocumentStarts& starts, int64_t vocab,
                          uint64_t seed) {
  Documents documents{length, starts, {}};
  std::mt19937_64 engine(seed);
  for (int64_t i = 0; i < documents.sequences() * length; ++i) {
    documents.ids.push_back(static_cast<int32_t>(engine() % static_cast<uint64_t>(vocab)));
  }
  return documents;
}

data::Batch SliceOf(const Documents& documents, int64_t first_sequence, int64_t sequences,
                    int64_t begin, int64_t end) {
  data::Batch batch;
  batch.sequences = sequences;
  batch.length = end - begin;
  for (int64_t b = first_sequence; b < first_sequence + sequences; ++b) {
    const std::vector<int64_t>& starts = documents.starts[static_cast<size_t>(b)];
    batch.document_starts.push_back(starts);
    for (int64_t i = begin; i < end; ++i) {
      const auto next = std::upper_bound(starts.begin(), starts.end(), i);
      const bool last = i + 1 == (next == starts.end() ? documents.length : *next);
      const size_t at = static_cast<size_t>(b * documents.length + i);
      batch.ids.push_back(documents.ids[at]);
      batch.targets.push_back(last ? -1 : documents.ids[at + 1]);
      batch.positions.push_back(static_cast<int32_t>(i - *std::prev(next)));
      batch.valid_targets += last ? 0 : 1;
    }
  }
  return batch;
}

Outcome RunModel(const v1::TrainingJob& job, const Documents& documents,
                 const ParameterSource& parameters, const Passes& passes) {
  Outcome outcome;
  std::mutex mutex;
  const absl::Status status =
      RunLocalRanks(passes.mesh.world(), [&](Communicator& world) -> absl::Status {
        ELA_ASSIGN_OR_RETURN(
            const std::unique_ptr<Mesh> mesh,
            Mesh::Create(&world, passes.mesh, job.spec().model().moe().num_experts()));
        Rank rank(job, documents, passes, *mesh, &outcome, &mutex);
        return rank.Run(parameters, passes.backward);
      });
  EXPECT_EQ(status, absl::OkStatus());
  return outcome;
}

LoneModel::LoneModel(const v1::TrainingJob& job, const ParameterSource& parameters, Backend backend)
    : spec(job.spec().model()),
      layer(MakeLayerContext(ContextOf(backend, 1, &scratch, &counters), &saved)),
      store(job::Parameters(job.spec().model()), StoreOptionsOf(backend, DType::kF32)),
      decoder(job.spec().model(), &store, nullptr, DecoderOptionsOf(job)) {
  EXPECT_EQ(store.Fill(parameters), absl::OkStatus());
}

double LoneModel::MeanLoss(const Documents& documents) {
  const v1::ModelSpec& model = spec;
  const TokenRows rows(SliceOf(documents, 0, documents.sequences(), 0, documents.length),
                       documents.length, 0, 1);
  RoutingStatistics routing(model.num_layers(), model.moe().num_experts());
  EXPECT_EQ(decoder.Forward(layer, rows, &routing), absl::OkStatus());
  double loss_sum = 0;
  decoder.Loss(layer, rows, &loss_sum);
  decoder.Forget(layer);
  return loss_sum / static_cast<double>(rows.valid_targets()) +
         ProbabilityTerm(model, routing.prob_sums);
}

double RelativeDistance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
      return std::numeric_limits<double>::infinity();
    }
    difference = std::max(difference, std::abs(a[i] - b[i]));
    size = std::max(size, std::abs(b[i]));
  }
  return difference == 0 ? 0 : difference / size;
}

std::pair<double, std::string> WorstDistance(const Outcome& a, const Outcome& b) {
  std::pair<double, std::string> worst = {RelativeDistance({a.loss}, {b.loss}), "loss"};
  worst = std::max(worst, {RelativeDistance(a.features, b.features), "features"});
  worst = std::max(worst, {RelativeDistance(a.logprobs, b.logprobs), "logprobs"});
  if (a.grads.size() != b.grads.size()) {
    return {std::numeric_limits<double>::infinity(), "other gradients"};
  }
  for (const auto& [name, grad] : b.grads) {
    worst = std::max(worst, {RelativeDistance(a.grads.at(name), grad), name});
  }
  return worst;
}

}  // namespace ela::trainer
