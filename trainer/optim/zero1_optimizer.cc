#include "trainer/optim/zero1_optimizer.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {

using kernels::DType;
using kernels::Tensor;

namespace {

float* FloatsOf(const kernels::BackendMemory& memory) {
  return reinterpret_cast<float*>(memory.data());
}

Tensor FloatsAt(const kernels::BackendMemory& memory, int64_t begin, int64_t end) {
  return Tensor::Of(FloatsOf(memory) + begin, {end - begin});
}

}  // namespace

Zero1Optimizer::Zero1Optimizer(const Mesh* mesh, ParameterStore* store,
                               const OptimizerConfig& config)
    : mesh_(mesh), store_(store), config_(config) {
  const DType dtype = store->options().dtype;
  ELA_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "no optimizer for dtype %d",
            static_cast<int>(dtype));
  for (const ParameterClass cls : kParameterClasses) {
    Shard& shard = shards_[static_cast<size_t>(cls)];
    shard.group = cls == ParameterClass::kDense ? &mesh->world() : &mesh->expert_data();
    const int64_t padded = store->flat_params(cls).numel();
    const int64_t owned = padded / shard.group->size();
    shard.begin = owned * shard.group->rank();
    shard.end = shard.begin + owned;
    shard.state_begin = config.zero1 ? shard.begin : 0;
    shard.state_end = config.zero1 ? shard.end : padded;
    PlanShard(store->segments(cls), &shard);
    const kernels::Context memory = store->memory();
    const auto zeros = [&](int64_t floats) {
      kernels::BackendMemory zeroed(static_cast<size_t>(floats) * sizeof(float), memory.backend);
      kernels::Clear(memory, FloatsAt(zeroed, 0, floats));
      return zeroed;
    };
    shard.m = zeros(shard.moments);
    shard.v = zeros(shard.moments);
    if (dtype == DType::kBf16) {
      shard.master = zeros(shard.state_end - shard.state_begin);
    }
  }
}

// The segments, cut to the owned range and to that of the state.
void Zero1Optimizer::PlanShard(const std::vector<ParameterSegment>& segments, Shard* shard) {
  int64_t moments = 0;
  const auto cut = [](const ParameterSegment& segment, int64_t begin, int64_t end, int64_t moment,
                      std::vector<Interval>* intervals, std::vector<Run>* runs) {
    const int64_t first = std::max(begin, segment.offset);
    const int64_t last = std::min(end, segment.offset + segment.info.numel());
    if (first >= last) return int64_t{0};
    intervals->push_back({&segment.info, first - segment.offset, last - segment.offset, first,
                          segment.trainable ? moment : -1});
    if (!segment.trainable) return int64_t{0};
    const bool decays = segment.info.decays;
    if (!runs->empty() && runs->back().end == first && runs->back().decays == decays) {
      runs->back().end = last;
    } else {
      runs->push_back({first, last, moment, decays});
    }
    return last - first;
  };
  for (const ParameterSegment& segment : segments) {
    // Without ZeRO-1 the state has moments of the segment before the owned part of it, too.
    const int64_t skipped = std::max<int64_t>(0, shard->begin - segment.offset) -
                            std::max<int64_t>(0, shard->state_begin - segment.offset);
    cut(segment, shard->begin, shard->end, moments + skipped, &shard->owned, &shard->norm_runs);
    moments += cut(segment, shard->state_begin, shard->state_end, moments, &shard->state,
                   &shard->update_runs);
    shard->trains |= segment.trainable;
  }
  shard->moments = moments;
}

// Straight into host memory; by way of it to a device.
absl::Status Zero1Optimizer::ReadInto(float* to, int64_t numel,
                                      const std::function<absl::Status(float*)>& read) const {
  const kernels::Context memory = store_->memory();
  if (memory.device == nullptr) return read(to);
  std::vector<float> values(static_cast<size_t>(numel));
  ELA_RETURN_IF_ERROR(read(values.data()));
  kernels::CopyIn(memory, Tensor::Of(to, {numel}), values.data());
  return absl::OkStatus();
}

float* Zero1Optimizer::Master(ParameterClass cls) const {
  Shard& shard = shards_[static_cast<size_t>(cls)];
  if (store_->options().dtype == DType::kBf16) return FloatsOf(shard.master);
  return store_->flat_params(cls).as<float>() + shard.state_begin;
}

// The parameters of all ranks from the masters.
absl::Status Zero1Optimizer::PublishMasters(const kernels::Context& ctx, ParameterClass cls) {
  const Shard& shard = shards_[static_cast<size_t>(cls)];
  const Tensor params = store_->flat_params(cls);
  if (store_->options().dtype == DType::kBf16) {
    kernels::Copy(ctx, params.Rows(shard.state_begin, shard.state_end),
                  FloatsAt(shard.master, 0, shard.state_end - shard.state_begin));
  }
  return GatherParameters(cls);
}

absl::Status Zero1Optimizer::GatherParameters(ParameterClass cls) {
  const Shard& shard = shards_[static_cast<size_t>(cls)];
  if (!config_.zero1) return absl::OkStatus();
  const Tensor params = store_->flat_params(cls);
  return AllGatherFlat(*shard.group, params, params.Rows(shard.begin, shard.end));
}

absl::Status Zero1Optimizer::Fill(const kernels::Context& ctx, const ParameterSource& source) {
  const auto fill = [&]() -> absl::Status {
    for (const ParameterClass cls : kParameterClasses) {
      Shard& shard = shards_[static_cast<size_t>(cls)];
      for (const kernels::BackendMemory* part : {&shard.m, &shard.v}) {
        kernels::Clear(store_->memory(), FloatsAt(*part, 0, shard.moments));
      }
      for (const Interval& part : shard.state) {
        float* to = Master(cls) + (part.flat - shard.state_begin);
        ELA_RETURN_IF_ERROR(ReadInto(to, part.end - part.begin, [&](float* out) {
          return source(*part.info, part.begin, part.end, out);
        }));
      }
    }
    return absl::OkStatus();
  };
  ELA_RETURN_IF_ERROR(AgreeOk(mesh_->world(), fill()));
  for (const ParameterClass cls : kParameterClasses) {
    ELA_RETURN_IF_ERROR(PublishMasters(ctx, cls));
  }
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
  for (const ParameterClass cls : kParameterClasses) {
    Shard& shard = shards_[static_cast<size_t>(cls)];
    const Tensor grads = store_->flat_grads(cls);
    const Tensor own = grads.Rows(shard.begin, shard.end);
    ELA_RETURN_IF_ERROR(ReduceScatterSum(ctx, *shard.group, own, grads));
    if (!config_.zero1) ELA_RETURN_IF_ERROR(AllGatherFlat(*shard.group, grads, own));

    int64_t at = shard.begin;
    const auto add = [&](int64_t which, int64_t end) {
      if (at < end) kernels::SumOfSquares(ctx, sums.Rows(which, which + 1), grads.Rows(at, end));
      at = end;
    };
    for (const Run& run : shard.norm_runs) {
      add(kFrozen, run.begin);
      add(kTrained, run.end);
    }
    add(kFrozen, shard.end);
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
  for (const ParameterClass cls : kParameterClasses) {
    Shard& shard = shards_[static_cast<size_t>(cls)];
    const Tensor params = store_->flat_params(cls), grads = store_->flat_grads(cls);
    for (const Run& run : shard.update_runs) {
      const int64_t moment = run.moment, moment_end = moment + run.end - run.begin;
      const Tensor master =
          Tensor::Of(Master(cls) + (run.begin - shard.state_begin), {run.end - run.begin});
      adamw.weight_decay = run.decays ? config_.weight_decay : 0;
      kernels::AdamWUpdate(
          ctx, params.Rows(run.begin, run.end), master, FloatsAt(shard.m, moment, moment_end),
          FloatsAt(shard.v, moment, moment_end), grads.Rows(run.begin, run.end), adamw);
    }
    if (shard.trains) ELA_RETURN_IF_ERROR(GatherParameters(cls));
  }
  return absl::OkStatus();
}

std::vector<checkpoints::Piece> Zero1Optimizer::Pieces() const {
  std::vector<checkpoints::Piece> pieces;
  const auto add = [&](const char* prefix, const Interval& part, const float* data) {
    pieces.push_back({prefix + part.info->name, part.begin, part.end, data, sizeof(float)});
  };
  for (const ParameterClass cls : kParameterClasses) {
    const Shard& shard = shards_[static_cast<size_t>(cls)];
    for (const Interval& part : shard.owned) {
      add("model/", part, Master(cls) + (part.flat - shard.state_begin));
      if (part.moment < 0) continue;
      add("adam_m/", part, FloatsOf(shard.m) + part.moment);
      add("adam_v/", part, FloatsOf(shard.v) + part.moment);
    }
  }
  return pieces;
}

void Zero1Optimizer::Snapshot(OptimizerSnapshot* snapshot) const {
  snapshot->pieces = Pieces();
  size_t numel = 0;
  for (const checkpoints::Piece& piece : snapshot->pieces) {
    numel += static_cast<size_t>(piece.end - piece.begin);
  }
  snapshot->memory.resize(numel);
  float* to = snapshot->memory.data();
  for (checkpoints::Piece& piece : snapshot->pieces) {
    const int64_t n = piece.end - piece.begin;
    kernels::CopyOut(store_->memory(), to, Tensor::Of(static_cast<const float*>(piece.data), {n}));
    piece.data = to;
    to += n;
  }
}

absl::Status Zero1Optimizer::Load(const kernels::Context& ctx, checkpoints::StepReader* reader) {
  const ParameterSource masters = CheckpointSource(reader);
  std::unordered_set<std::string> held;
  for (const v1::TensorRecord& tensor : reader->manifest().tensors()) held.insert(tensor.name());
  const auto load_moment = [&](const std::string& name, const Interval& part,
                               const kernels::BackendMemory& moments) -> absl::Status {
    const int64_t numel = part.end - part.begin;
    return ReadInto(FloatsOf(moments) + part.moment, numel, [&](float* out) -> absl::Status {
      if (held.count(name) > 0) return reader->Read(name, part.begin, part.end, out);
      std::fill_n(out, numel, 0.0f);
      return absl::OkStatus();
    });
  };
  const auto load = [&]() -> absl::Status {
    for (const ParameterClass cls : kParameterClasses) {
      Shard& shard = shards_[static_cast<size_t>(cls)];
      for (const Interval& part : shard.state) {
        float* master = Master(cls) + (part.flat - shard.state_begin);
        const std::string& name = part.info->name;
        ELA_RETURN_IF_ERROR(ReadInto(master, part.end - part.begin, [&](float* out) {
          return masters(*part.info, part.begin, part.end, out);
        }));
        if (part.moment < 0) continue;
        ELA_RETURN_IF_ERROR(load_moment("adam_m/" + name, part, shard.m));
        ELA_RETURN_IF_ERROR(load_moment("adam_v/" + name, part, shard.v));
      }
    }
    return absl::OkStatus();
  };
  ELA_RETURN_IF_ERROR(AgreeOk(mesh_->world(), load()));
  for (const ParameterClass cls : kParameterClasses) {
    ELA_RETURN_IF_ERROR(PublishMasters(ctx, cls));
  }
  return absl::OkStatus();
}

int64_t Zero1Optimizer::state_bytes() const {
  size_t bytes = 0;
  for (const Shard& shard : shards_) {
    bytes += shard.master.bytes() + shard.m.bytes() + shard.v.bytes();
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace ela::trainer
