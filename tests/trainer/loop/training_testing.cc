#include "tests/trainer/loop/training_testing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/loop/batch_stream.h"
#include "trainer/loop/train_step.h"
#include "trainer/optim/lr_schedule.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

constexpr char kJob[] = R"(apiVersion: ela/v1
kind: TrainingJob
metadata: {name: made-up}
spec:
  model:
    vocab_size: 31
    hidden_size: 16
    num_layers: 2
    num_attention_heads: 2
    attention: {decay: head, softmax_every: 2}
    moe: {num_experts: 4, top_k: 2, intermediate_size: 8, label_bias: inner}
    memory_lobe: {enabled: true, mode: causal}
  data:
    train: [{path: /data/a}]
    seq_len: 16
  training: {steps: 50, global_batch_size: 8}
  optimizer: {lr: 0.003}
  lr_scheduler: {type: cosine, warmup_steps: 5}
)";

constexpr uint64_t kMaskSeed = 9;

bool SameBits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

uint64_t Hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// One rank: what Trainer builds, without files and signals.
class TrainingRank {
 public:
  TrainingRank(const v1::TrainingJob& job, const RunOptions& options)
      : spec_(job.spec()),
        options_(options),
        loader_(spec_.data().seq_len(), spec_.model().vocab_size(), options.period) {}

  absl::Status Run(Communicator& world, Course* course, std::mutex* mutex) {
    ELA_ASSIGN_OR_RETURN(mesh_,
                         Mesh::Create(&world, options_.mesh, spec_.model().moe().num_experts()));
    ELA_RETURN_IF_ERROR(Build());
    if (options_.logprobs) ELA_RETURN_IF_ERROR(Score(course, mutex));
    Course mine;
    for (int64_t step = 1; step <= options_.steps; ++step) {
      ELA_RETURN_IF_ERROR(Step(step, &mine));
    }
    const std::lock_guard<std::mutex> lock(*mutex);
    Give(std::move(mine), course);
    return absl::OkStatus();
  }

 private:
  absl::Status Build() {
    const bool bf16 = spec_.training().precision() == v1::PRECISION_BF16;
    StoreOptions store;
    store.dtype = bf16 ? kernels::DType::kBf16 : kernels::DType::kF32;
    store.lobe_only = spec_.training().train_only() == v1::TRAIN_ONLY_MEMORY_LOBE;
    store.bucket_numel = options_.bucket_numel;
    store_ = std::make_unique<ParameterStore>(job::Parameters(spec_.model()), *mesh_, store);
    kernels::Context ctx;
    ctx.num_threads = options_.num_threads;
    ctx.scratch = &scratch_;
    ctx.counters = &counters_;
    layer_ = MakeLayerContext(ctx, &saved_, store.dtype);
    const bool causal = spec_.training().objective() != v1::OBJECTIVE_MASKED_TOKEN;
    DecoderOptions decoder = {.recompute_layers = job::RecomputedLayers(spec_), .causal = causal};
    decoder.before_part = [this](int64_t part) { return optimizer_->AwaitParameters(part); };
    decoder_ = std::make_unique<Decoder>(spec_.model(), store_.get(), mesh_.get(), decoder);
    AtPart gradients_final;
    if (options_.overlap && !options_.tamper) {
      gradients_final = [this](int64_t part) {
        return optimizer_->StartReducing(layer_.ctx, part);
      };
    }
    step_ = std::make_unique<TrainStep>(spec_, decoder_.get(), store_.get(), mesh_.get(),
                                        gradients_final);
    stream_ = std::make_unique<BatchStream>(&loader_, spec_, mesh_->sizes(), mesh_->data_index(),
                                            mesh_->sequence_index(), kMaskSeed);
    OptimizerConfig config;
    config.zero1 = options_.update;  // without: every rank keeps all summed gradients
    optimizer_ = std::make_unique<Zero1Optimizer>(mesh_.get(), store_.get(), config);
    return optimizer_->Fill(ctx, InitialSource(spec_.model().num_layers(), 5));
  }

  /// Every token's log-probability into its place of the global batch.
  absl::Status Score(Course* course, std::mutex* mutex) {
    StepBatch batch;
    ELA_RETURN_IF_ERROR(stream_->Fill(/*step=*/1, /*first_sample=*/0, &batch));
    const int64_t length = spec_.data().seq_len(), sequences = spec_.training().global_batch_size();
    const int64_t begin = ShardBegin(length, mesh_->sequence_index(), options_.mesh.sequence);
    int64_t sequence = mesh_->data_index() * sequences / options_.mesh.data;
    for (const TokenRows& rows : batch.micro) {
      const kernels::ArenaScope scope(&scratch_);
      const kernels::Tensor logprob = layer_.ScratchStatistic({rows.count()});
      ELA_RETURN_IF_ERROR(decoder_->Forward(layer_, rows, nullptr));
      decoder_->Logprobs(layer_, rows, logprob);
      decoder_->Forget(layer_);
      const std::lock_guard<std::mutex> lock(*mutex);
      course->logprobs.resize(static_cast<size_t>(sequences * length));
      const int64_t shard = rows.count() / rows.sequences();
      for (int64_t b = 0; b < rows.sequences(); ++b, ++sequence) {
        std::copy_n(logprob.as<float>() + b * shard, shard,
                    course->logprobs.begin() + sequence * length + begin);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Step(int64_t step, Course* mine) {
    StepBatch batch;
    const int64_t first = (step - 1) * spec_.training().global_batch_size();
    const absl::Status filled = stream_->Fill(step, first, &batch);
    ELA_ASSIGN_OR_RETURN(const StepLoss loss, step_->Run(layer_, batch, filled, 0));
    if (options_.tamper) options_.tamper(mesh_->world().rank(), step, store_.get());
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                         optimizer_->ReduceGradients(layer_.ctx, loss.locally_finite));
    mine->losses.push_back(loss.loss);
    mine->aux_losses.push_back(loss.aux_loss);
    mine->norms.push_back(verdict.norm);
    mine->finite.push_back(verdict.finite);
    mine->valid_targets.push_back(loss.valid_targets);
    mine->expert_counts = loss.routing.counts;
    if (!options_.update || !verdict.finite) return absl::OkStatus();
    return optimizer_->Update(layer_.ctx, verdict, LearningRate(MakeLrSchedule(spec_), step), step);
  }

  void Give(Course mine, Course* course) {
    if (!course->losses.empty()) {
      EXPECT_TRUE(SameBits(mine.losses, course->losses)) << "ranks disagree";
      EXPECT_TRUE(SameBits(mine.norms, course->norms)) << "ranks disagree";
      EXPECT_EQ(mine.finite, course->finite) << "ranks disagree";
      EXPECT_EQ(mine.expert_counts, course->expert_counts) << "ranks disagree";
    }
    mine.weights = std::move(course->weights);
    mine.gradients = std::move(course->gradients);
    mine.logprobs = std::move(course->logprobs);
    mine.scratch = std::max(course->scratch, static_cast<int64_t>(scratch_.peak_bytes()));
    mine.saved = std::max(course->saved, static_cast<int64_t>(saved_.peak_bytes()));
    *course = std::move(mine);
    for (const checkpoints::Piece& piece : optimizer_->Pieces()) {
      if (piece.tensor.rfind("model/", 0) != 0) continue;
      std::vector<float>& whole = course->weights[piece.tensor.substr(6)];
      whole.resize(std::max(whole.size(), static_cast<size_t>(piece.end)));
      const float* from = static_cast<const float*>(piece.data);
      std::copy(from, from + (piece.end - piece.begin), whole.begin() + piece.begin);
    }
    if (options_.update) return;
    for (const ParameterClass cls : kParameterClasses) {
      for (const ParameterSegment& segment : store_->segments(cls)) {
        const float* g = store_->flat_grads(cls).as<float>() + segment.offset;
        course->gradients[segment.info.name].assign(g, g + segment.info.numel());
      }
    }
  }

  const v1::JobSpec spec_;
  const RunOptions& options_;
  MadeUpLoader loader_;
  kernels::Arena scratch_, saved_;
  kernels::Counters counters_;
  LayerContext layer_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<ParameterStore> store_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<TrainStep> step_;
  std::unique_ptr<BatchStream> stream_;
  std::unique_ptr<Zero1Optimizer> optimizer_;
};

}  // namespace

v1::TrainingJob TrainingJobWith(const std::vector<std::string>& sets) {
  auto job = job::ParseJob(kJob, "made-up.yaml");
  EXPECT_TRUE(job.ok()) << job.status();
  for (const std::string& set : sets) {
    const absl::Status status = job::ApplySet(set, &*job);
    EXPECT_TRUE(status.ok()) << status;
  }
  return job::Resolve(*job, "");
}

absl::Status MadeUpLoader::Fill(int64_t first_sample, int64_t sequences, int64_t token_begin,
                                int64_t token_end, data::Batch* batch) const {
  *batch = {};
  batch->sequences = sequences;
  batch->length = token_end - token_begin;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t sample = first_sample + b;
    FillRow(period_ > 0 ? sample % period_ : sample, token_begin, token_end, batch);
  }
  return absl::OkStatus();
}

void MadeUpLoader::FillRow(int64_t sample, int64_t begin, int64_t end, data::Batch* batch) const {
  const uint64_t key = Hash(static_cast<uint64_t>(sample) + 77);
  const int64_t mean = 1 + static_cast<int64_t>(key % static_cast<uint64_t>(seq_len_));
  std::vector<int64_t>& starts = batch->document_starts.emplace_back();
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i <= seq_len_; ++i) {
    const uint64_t h = Hash(key + static_cast<uint64_t>(i));
    const bool start = i == 0 || static_cast<int64_t>(h % static_cast<uint64_t>(mean)) == 1;
    if (start && i < seq_len_) starts.push_back(i);
    const bool ruled = !start && h % 7 != 0;
    const uint64_t next = ruled ? 5 * static_cast<uint64_t>(tokens.back()) + 3 : h >> 20;
    tokens.push_back(static_cast<int32_t>(next % static_cast<uint64_t>(vocab_)));
  }
  for (int64_t i = begin; i < end; ++i) {
    const auto after = std::upper_bound(starts.begin(), starts.end(), i);
    const bool last = after != starts.end() && *after == i + 1;  // of its document
    batch->ids.push_back(tokens[static_cast<size_t>(i)]);
    batch->targets.push_back(last ? -1 : tokens[static_cast<size_t>(i + 1)]);
    batch->positions.push_back(static_cast<int32_t>(i - *(after - 1)));
    batch->valid_targets += !last;
  }
}

Course RunTraining(const v1::TrainingJob& job, const RunOptions& options) {
  v1::TrainingJob meshed = job;
  meshed.mutable_spec()->mutable_parallelism()->set_data(options.mesh.data);
  meshed.mutable_spec()->mutable_parallelism()->set_sequence(options.mesh.sequence);
  meshed.mutable_spec()->mutable_parallelism()->set_expert(options.mesh.expert);
  Course course;
  std::mutex mutex;
  const absl::Status status = RunLocalRanks(options.mesh.world(), [&](Communicator& world) {
    return TrainingRank(meshed, options).Run(world, &course, &mutex);
  });
  EXPECT_TRUE(status.ok()) << status;
  const job::MemoryPlan plan = job::PlanMemory(meshed);
  course.planned_scratch = plan.workspace;
  course.planned_saved = plan.activations;
  return course;
}

double LargestDifference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
  }
  return largest;
}

double RelativeDifference(const std::map<std::string, std::vector<float>>& a,
                          const std::map<std::string, std::vector<float>>& b) {
  double error = a.size() == b.size() ? 0 : std::numeric_limits<double>::infinity(), norm = 1e-60;
  for (const auto& [name, values] : a) {
    const auto found = b.find(name);
    if (found == b.end() || found->second.size() != values.size()) {
      return std::numeric_limits<double>::infinity();
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const double difference = values[i] - found->second[i];
      error += difference * difference;
      norm += static_cast<double>(found->second[i]) * found->second[i];
    }
  }
  return std::sqrt(error / norm);
}

double LargestRelativeDifference(const std::map<std::string, std::vector<float>>& a,
                                 const std::map<std::string, std::vector<float>>& b) {
  double largest = a.size() == b.size() ? 0 : std::numeric_limits<double>::infinity();
  for (const auto& [name, values] : a) {
    const auto found = b.find(name);
    if (found == b.end()) return std::numeric_limits<double>::infinity();
    double scale = 1e-30;
    for (const float x : found->second) scale = std::max<double>(scale, std::fabs(x));
    const double difference = LargestDifference({values.begin(), values.end()},
                                                {found->second.begin(), found->second.end()});
    largest = std::max(largest, difference / scale);
  }
  return largest;
}

bool SameBits(const Course& a, const Course& b) {
  return a.losses == b.losses && a.aux_losses == b.aux_losses && a.norms == b.norms &&
         a.weights == b.weights && a.gradients == b.gradients;
}

}  // namespace ela::trainer
