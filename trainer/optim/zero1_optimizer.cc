#include "trainer/optim/zero1_optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::DType;
using kernels::SizeOf;
using kernels::Tensor;

float* Zero1Optimizer::FloatsOf(const kernels::BackendMemory& memory) {
  return reinterpret_cast<float*>(memory.data());
}

Tensor Zero1Optimizer::FloatsAt(const kernels::BackendMemory& memory, int64_t begin, int64_t end) {
  return Tensor::Of(FloatsOf(memory) + begin, {end - begin});
}

Zero1Optimizer::Zero1Optimizer(const Mesh* mesh, ParameterStore* store,
                               const OptimizerConfig& config)
    : mesh_(mesh), store_(store), config_(config) {
  const DType dtype = store->options().dtype;
  ELA_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "no optimizer for dtype %d",
            static_cast<int>(dtype));
  const kernels::Context memory = store->memory();
  const auto zeros = [&](int64_t floats) {
    kernels::BackendMemory zeroed(static_cast<size_t>(floats) * sizeof(float), memory.backend);
    kernels::Clear(memory, FloatsAt(zeroed, 0, floats));
    return zeroed;
  };
  for (const ParameterClass cls : kParameterClasses) {
    Communicator* group = cls == ParameterClass::kDense ? &mesh->world() : &mesh->expert_data();
    for (const ParameterBucket& b : store->buckets(cls)) {
      const int64_t piece = (b.end - b.begin) / group->size();
      const int64_t own = b.begin + piece * group->rank();
      buckets_.push_back({cls, group, b.part, b.begin, b.end, own, own + piece,
                          config.zero1 ? own : b.begin, config.zero1 ? own + piece : b.end,
                          state(cls).masters});
      PlanBucket(store->segments(cls), &buckets_.back());
    }
    State& s = state(cls);
    s.m = zeros(s.moments);
    s.v = zeros(s.moments);
    if (dtype == DType::kBf16) s.master = zeros(s.masters);
  }
  std::stable_sort(buckets_.begin(), buckets_.end(),
                   [](const Bucket& a, const Bucket& b) { return a.part < b.part; });
  unreduced_ = buckets_.size();
  ReserveReceived();
}

// A place for one layer, all of it, so that its sums run beside the backward pass of the next, or
// for a bucket of the embedding; and another, for a rank that is ahead of the others.
void Zero1Optimizer::ReserveReceived() {
  int64_t most = 0, of_part = 0, part = 0;
  for (const Bucket& bucket : buckets_) {
    if (bucket.group->size() == 1) continue;
    if (bucket.part == 0 || bucket.part != part) of_part = 0;
    part = bucket.part;
    of_part += bucket.numel();
    most = std::max(most, of_part);
  }
  for (Arrivals& arrivals : arrivals_) {
    arrivals.memory =
        kernels::BackendMemory(static_cast<size_t>(most) * sizeof(float), store_->memory().backend);
  }
}

float* Zero1Optimizer::Master(ParameterClass cls, int64_t flat, int64_t master) const {
  if (store_->options().dtype == DType::kBf16) return FloatsOf(state(cls).master) + master;
  return store_->flat_params(cls).as<float>() + flat;
}

absl::Status Zero1Optimizer::StartGather(Bucket* bucket) {
  if (!config_.zero1 || bucket->group->size() == 1) return absl::OkStatus();
  const Tensor params = store_->flat_params(bucket->cls);
  const Tensor own = params.Rows(bucket->own_begin, bucket->own_end);
  ELA_ASSIGN_OR_RETURN(
      bucket->gather,
      bucket->group->AllGatherStart(params.Rows(bucket->begin, bucket->end).data(), own.data(),
                                    static_cast<size_t>(own.numel()) * SizeOf(own.dtype())));
  return absl::OkStatus();
}

absl::Status Zero1Optimizer::AwaitParameters(int64_t part) {
  for (Bucket& bucket : buckets_) {
    if (bucket.part > part) break;
    if (bucket.gather == nullptr) continue;
    ELA_RETURN_IF_ERROR(std::exchange(bucket.gather, nullptr)->Wait());
  }
  return absl::OkStatus();
}

absl::Status Zero1Optimizer::StartReducing(const kernels::Context& ctx, int64_t part) {
  const auto capacity = static_cast<int64_t>(arrivals_[0].memory.bytes() / sizeof(float));
  int64_t at = capacity;
  for (; unreduced_ > 0 && buckets_[unreduced_ - 1].part >= part; --unreduced_) {
    const Bucket& bucket = buckets_[unreduced_ - 1];
    if (bucket.group->size() == 1) continue;
    if (at + bucket.numel() > capacity) {
      std::swap(arrivals_[0], arrivals_[1]);
      ELA_RETURN_IF_ERROR(FinishSums(ctx, &arrivals_[0]));
      at = 0;
    }
    ELA_ASSIGN_OR_RETURN(
        PendingSum sum,
        ReduceScatterSumStart(*bucket.group,
                              store_->flat_grads(bucket.cls).Rows(bucket.begin, bucket.end),
                              FloatsAt(arrivals_[0].memory, at, at + bucket.numel())));
    arrivals_[0].sums.push_back(std::move(sum));
    at += bucket.numel();
  }
  return absl::OkStatus();
}

absl::Status Zero1Optimizer::FinishSums(const kernels::Context& ctx, Arrivals* arrivals) {
  for (PendingSum& sum : arrivals->sums) ELA_RETURN_IF_ERROR(sum.Finish(ctx));
  arrivals->sums.clear();
  return absl::OkStatus();
}

absl::StatusOr<GradientVerdict> Zero1Optimizer::ReduceGradients(const kernels::Context& ctx,
                                                                bool locally_finite) {
  const kernels::TraceRange range("Zero1Optimizer::ReduceGradients");
  struct Word {
    double squares;         // of the owned, trainable elements
    double frozen_squares;  // of the owned others: only whether they are finite matters
    double finite;
  };
  enum : int64_t { kTrained, kFrozen };
  double squares[2] = {0, 0};
  const kernels::ArenaScope scope(ctx.scratch);
  const Tensor sums = kernels::Uploaded(ctx, Tensor::Of(squares, {2}));
  ELA_RETURN_IF_ERROR(StartReducing(ctx, /*part=*/0));
  for (const size_t i : {1, 0}) ELA_RETURN_IF_ERROR(FinishSums(ctx, &arrivals_[i]));
  unreduced_ = buckets_.size();
  for (const Bucket& bucket : buckets_) {
    const Tensor grads = store_->flat_grads(bucket.cls);
    if (!config_.zero1) {
      ELA_RETURN_IF_ERROR(bucket.group->AllGather(
          grads.Rows(bucket.begin, bucket.end).data(),
          grads.Rows(bucket.own_begin, bucket.own_end).data(),
          static_cast<size_t>(bucket.own_end - bucket.own_begin) * SizeOf(grads.dtype())));
    }
    int64_t at = bucket.own_begin;
    const auto add = [&](int64_t which, int64_t end) {
      if (at < end) kernels::SumOfSquares(ctx, sums.Rows(which, which + 1), grads.Rows(at, end));
      at = end;
    };
    for (const Run& run : bucket.norm_runs) {
      add(kFrozen, run.begin);
      add(kTrained, run.end);
    }
    add(kFrozen, bucket.own_end);
  }
  if (sums.data() != squares) kernels::CopyOut(ctx, squares, sums);
  const Word mine = {squares[kTrained], squares[kFrozen], locally_finite ? 1.0 : 0.0};
  std::vector<Word> words(static_cast<size_t>(mesh_->world().size()));
  ELA_RETURN_IF_ERROR(mesh_->world().AllGather(words.data(), &mine, sizeof(Word)));

  GradientVerdict verdict;
  double sum = 0;
  for (const Word& word : words) {
    sum += word.squares;
    verdict.finite &= word.finite == 1 && std::isfinite(word.squares + word.frozen_squares);
  }
  verdict.norm = std::sqrt(sum);
  const double limit = config_.grad_clip_norm;
  if (limit > 0 && verdict.norm > limit) verdict.clip_scale = limit / verdict.norm;
  return verdict;
}

absl::Status Zero1Optimizer::Update(const kernels::Context& ctx, const GradientVerdict& verdict,
                                    double lr, int64_t optimizer_step) {
  const kernels::TraceRange range("Zero1Optimizer::Update");
  ELA_CHECK(verdict.finite, "an update with gradients that are not finite");
  kernels::AdamWConfig adamw;
  adamw.lr = lr;
  adamw.beta1 = config_.beta1;
  adamw.beta2 = config_.beta2;
  adamw.eps = config_.eps;
  adamw.grad_scale = verdict.clip_scale;
  adamw.step = optimizer_step;
  ELA_RETURN_IF_ERROR(AwaitParameters());
  for (Bucket& bucket : buckets_) {
    const State& s = state(bucket.cls);
    const Tensor params = store_->flat_params(bucket.cls), grads = store_->flat_grads(bucket.cls);
    for (const Run& run : bucket.update_runs) {
      const int64_t numel = run.end - run.begin;
      const Tensor master = Tensor::Of(Master(bucket.cls, run.begin, run.master), {numel});
      adamw.weight_decay = run.decays ? config_.weight_decay : 0;
      kernels::AdamWUpdate(ctx, params.Rows(run.begin, run.end), master,
                           FloatsAt(s.m, run.moment, run.moment + numel),
                           FloatsAt(s.v, run.moment, run.moment + numel),
                           grads.Rows(run.begin, run.end), adamw);
    }
    if (bucket.trains) ELA_RETURN_IF_ERROR(StartGather(&bucket));
  }
  return absl::OkStatus();
}

int64_t Zero1Optimizer::received_bytes() const {
  return static_cast<int64_t>(arrivals_[0].memory.bytes() + arrivals_[1].memory.bytes());
}

int64_t Zero1Optimizer::state_bytes() const {
  size_t bytes = 0;
  for (const State& s : states_) bytes += s.master.bytes() + s.m.bytes() + s.v.bytes();
  return static_cast<int64_t>(bytes);
}

}  // namespace ela::trainer
