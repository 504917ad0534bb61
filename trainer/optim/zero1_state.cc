// Zero1Optimizer: which part of the state a rank holds; filling, saving and loading it.
#include <algorithm>
#include <unordered_set>

#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {

using kernels::DType;
using kernels::Tensor;

// The segments, cut to the owned range and to that of the state.
void Zero1Optimizer::PlanBucket(const std::vector<ParameterSegment>& segments, Bucket* bucket) {
  State& s = state(bucket->cls);
  const auto cut = [](const Interval& part, int64_t begin, int64_t end, bool decays,
                      std::vector<Interval>* intervals, std::vector<Run>* runs) {
    const int64_t first = std::max(begin, part.flat);
    const int64_t last = std::min(end, part.flat + part.end - part.begin);
    if (first >= last) return;
    const int64_t skipped = first - part.flat;
    Interval of_it = part;
    of_it.begin += skipped;
    of_it.end = of_it.begin + last - first;
    of_it.flat = first;
    of_it.master += skipped;
    if (part.moment >= 0) of_it.moment += skipped;
    intervals->push_back(of_it);
    if (part.moment < 0) return;
    if (!runs->empty() && runs->back().end == first && runs->back().decays == decays) {
      runs->back().end = last;
    } else {
      runs->push_back({first, last, of_it.master, of_it.moment, decays});
    }
  };
  for (const ParameterSegment& segment : segments) {
    const int64_t end = segment.offset + segment.info.numel();
    if (end <= bucket->begin || segment.offset >= bucket->end) continue;
    bucket->trains |= segment.trainable;
    const int64_t first = std::max(bucket->state_begin, segment.offset);
    const int64_t last = std::min(bucket->state_end, end);
    if (first >= last) continue;
    const Interval part = {&segment.info,
                           first - segment.offset,
                           last - segment.offset,
                           first,
                           bucket->master + first - bucket->state_begin,
                           segment.trainable ? s.moments : -1};
    const bool decays = segment.info.decays;
    cut(part, first, last, decays, &bucket->state, &bucket->update_runs);
    cut(part, bucket->own_begin, bucket->own_end, decays, &bucket->owned, &bucket->norm_runs);
    if (segment.trainable) s.moments += last - first;
  }
  s.masters += bucket->state_end - bucket->state_begin;
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

// The parameters of all ranks from the masters.
absl::Status Zero1Optimizer::PublishMasters(const kernels::Context& ctx) {
  for (Bucket& bucket : buckets_) {
    const int64_t begin = bucket.state_begin, end = bucket.state_end;
    if (store_->options().dtype == DType::kBf16) {
      kernels::Copy(ctx, store_->flat_params(bucket.cls).Rows(begin, end),
                    Tensor::Of(Master(bucket.cls, begin, bucket.master), {end - begin}));
    }
    ELA_RETURN_IF_ERROR(StartGather(&bucket));
  }
  return AwaitParameters();
}

absl::Status Zero1Optimizer::Fill(const kernels::Context& ctx, const ParameterSource& source) {
  const auto fill = [&]() -> absl::Status {
    for (const State& s : states_) {
      kernels::Clear(store_->memory(), FloatsAt(s.m, 0, s.moments));
      kernels::Clear(store_->memory(), FloatsAt(s.v, 0, s.moments));
    }
    for (const Bucket& bucket : buckets_) {
      for (const Interval& part : bucket.state) {
        float* to = Master(bucket.cls, part.flat, part.master);
        ELA_RETURN_IF_ERROR(ReadInto(to, part.end - part.begin, [&](float* out) {
          return source(*part.info, part.begin, part.end, out);
        }));
      }
    }
    return absl::OkStatus();
  };
  ELA_RETURN_IF_ERROR(AwaitParameters());
  ELA_RETURN_IF_ERROR(AgreeOk(mesh_->world(), fill()));
  return PublishMasters(ctx);
}

std::vector<checkpoints::Piece> Zero1Optimizer::Pieces() const {
  std::vector<checkpoints::Piece> pieces;
  const auto add = [&](const char* prefix, const Interval& part, const float* data) {
    pieces.push_back({prefix + part.info->name, part.begin, part.end, data, sizeof(float)});
  };
  for (const Bucket& bucket : buckets_) {
    const State& s = state(bucket.cls);
    for (const Interval& part : bucket.owned) {
      add("model/", part, Master(bucket.cls, part.flat, part.master));
      if (part.moment < 0) continue;
      add("adam_m/", part, FloatsOf(s.m) + part.moment);
      add("adam_v/", part, FloatsOf(s.v) + part.moment);
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
    for (const Bucket& bucket : buckets_) {
      const State& s = state(bucket.cls);
      for (const Interval& part : bucket.state) {
        float* master = Master(bucket.cls, part.flat, part.master);
        const std::string& name = part.info->name;
        ELA_RETURN_IF_ERROR(ReadInto(master, part.end - part.begin, [&](float* out) {
          return masters(*part.info, part.begin, part.end, out);
        }));
        if (part.moment < 0) continue;
        ELA_RETURN_IF_ERROR(load_moment("adam_m/" + name, part, s.m));
        ELA_RETURN_IF_ERROR(load_moment("adam_v/" + name, part, s.v));
      }
    }
    return absl::OkStatus();
  };
  ELA_RETURN_IF_ERROR(AwaitParameters());
  ELA_RETURN_IF_ERROR(AgreeOk(mesh_->world(), load()));
  return PublishMasters(ctx);
}

}  // namespace ela::trainer
