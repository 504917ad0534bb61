#include "trainer/optim/parameter_store.h"

#include <algorithm>
#include <charconv>

#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::DType;
using kernels::SizeOf;
using kernels::Tensor;

namespace {

Tensor Shaped(char* data, DType dtype, const std::vector<int64_t>& shape) {
  ELA_CHECK(shape.size() == 1 || shape.size() == 2, "a parameter of %d dimensions",
            static_cast<int>(shape.size()));
  return shape.size() == 1 ? Tensor(data, dtype, {shape[0]})
                           : Tensor(data, dtype, {shape[0], shape[1]});
}

// floats of the source -> n elements of the store.
void Store(char* to, DType dtype, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    switch (dtype) {
      case DType::kF32:
        reinterpret_cast<float*>(to)[i] = from[i];
        break;
      case DType::kF64:
        reinterpret_cast<double*>(to)[i] = from[i];
        break;
      default:
        reinterpret_cast<kernels::Bf16*>(to)[i] = kernels::Bf16(from[i]);
    }
  }
}

}  // namespace

int64_t ExpertOf(std::string_view name) {
  constexpr std::string_view kExperts = ".moe.experts.";
  const size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return -1;
  const std::string_view rest = name.substr(at + kExperts.size());
  int64_t expert = -1;
  const std::from_chars_result read = std::from_chars(rest.begin(), rest.end(), expert);
  return read.ec == std::errc() && read.ptr != rest.end() && *read.ptr == '.' ? expert : -1;
}

ParameterStore::ParameterStore(const std::vector<job::ParameterInfo>& parameters, const Mesh& mesh,
                               const StoreOptions& options)
    : all_(parameters), options_(options) {
  Build(mesh.expert_begin(), mesh.expert_end(), mesh.sizes().world(), mesh.sizes().expert_data());
}

ParameterStore::ParameterStore(const std::vector<job::ParameterInfo>& parameters,
                               const StoreOptions& options)
    : all_(parameters), options_(options) {
  Build(0, INT64_MAX, 1, 1);
}

void ParameterStore::Build(int64_t expert_begin, int64_t expert_end, int dense_shards,
                           int expert_shards) {
  const std::array<int, 2> shards = {dense_shards, expert_shards};
  for (const job::ParameterInfo& info : all_) {
    const ParameterClass cls = info.is_expert ? ParameterClass::kExpert : ParameterClass::kDense;
    const int64_t expert = ExpertOf(info.name);
    ELA_CHECK(info.is_expert == (expert >= 0), "%s", info.name.c_str());
    if (info.is_expert && (expert < expert_begin || expert >= expert_end)) continue;
    Buffer& buffer = buffers_[static_cast<size_t>(cls)];
    if (!buffer.segments.empty() && buffer.segments.back().info.part != info.part) {
      ClosePart(shards[static_cast<size_t>(cls)], &buffer);
    }
    places_[info.name] = {cls, buffer.segments.size()};
    buffer.segments.push_back({info, 0, Trains(info)});
  }
  for (size_t c = 0; c < buffers_.size(); ++c) {
    Buffer& buffer = buffers_[c];
    if (!buffer.segments.empty()) ClosePart(shards[c], &buffer);
    const size_t n = static_cast<size_t>(buffer.padded);
    const kernels::Context ctx = memory();
    buffer.params = kernels::BackendMemory(n * SizeOf(options_.dtype), ctx.backend);
    kernels::Clear(ctx, Tensor(buffer.params.data(), options_.dtype, {buffer.padded}));
    if (options_.gradients) {
      buffer.grads = kernels::BackendMemory(n * SizeOf(grad_dtype()), ctx.backend);
    }
  }
  ZeroGrads();
}

void ParameterStore::ClosePart(int64_t ranks, Buffer* buffer) const {
  const int64_t part = buffer->segments.back().info.part;
  int64_t begin = buffer->padded;
  const auto first = std::find_if(buffer->segments.begin(), buffer->segments.end(),
                                  [&](const ParameterSegment& s) { return s.info.part == part; });
  std::vector<job::ParameterInfo> infos;
  for (auto s = first; s != buffer->segments.end(); ++s) infos.push_back(s->info);
  const std::vector<int64_t> offsets = job::FlatOffsets(infos);
  for (size_t i = 0; i < infos.size(); ++i) {
    first[static_cast<int64_t>(i)].offset = begin + offsets[i];
  }
  buffer->numel = begin + offsets.back();
  buffer->padded = begin + job::PaddedPart(offsets.back(), ranks);
  const int64_t longest = job::LongestBucket(ranks, options_.bucket_numel);
  for (; begin < buffer->padded; begin += longest) {
    buffer->buckets.push_back({begin, std::min(begin + longest, buffer->padded), part});
  }
}

kernels::Context ParameterStore::memory() const {
  kernels::Context ctx;
  ctx.device = options_.device;
  if (options_.device == nullptr) return ctx;
  ctx.backend = kernels::Backend::kCuda;
  ctx.stream = options_.device->stream();
  return ctx;
}

DType ParameterStore::grad_dtype() const {
  return options_.dtype == DType::kF64 ? DType::kF64 : DType::kF32;
}

bool ParameterStore::Trains(const job::ParameterInfo& info) const {
  return !options_.lobe_only || job::IsOfLobe(info);
}

bool ParameterStore::Has(std::string_view name) const {
  return places_.find(std::string(name)) != places_.end();
}

const ParameterStore::Place& ParameterStore::Find(std::string_view name) const {
  const auto found = places_.find(std::string(name));
  ELA_CHECK(found != places_.end(), "this rank holds no parameter %s", std::string(name).c_str());
  return found->second;
}

Tensor ParameterStore::View(const Place& place, bool grad) const {
  const Buffer& buffer = buffers_[static_cast<size_t>(place.cls)];
  const ParameterSegment& segment = buffer.segments[place.segment];
  const DType dtype = grad ? grad_dtype() : options_.dtype;
  char* base = grad ? buffer.grads.data() : buffer.params.data();
  ELA_CHECK(!grad || options_.gradients, "%s: the store keeps no gradients",
            segment.info.name.c_str());
  return Shaped(base + static_cast<size_t>(segment.offset) * SizeOf(dtype), dtype,
                segment.info.shape);
}

Tensor ParameterStore::Fused(std::string_view first, std::string_view last, bool grad) const {
  const Place &begin = Find(first), &end = Find(last);
  ELA_CHECK(begin.cls == end.cls && begin.segment <= end.segment, "%s does not precede %s",
            std::string(first).c_str(), std::string(last).c_str());
  const Buffer& buffer = buffers_[static_cast<size_t>(begin.cls)];
  const Tensor head = View(begin, grad);
  int64_t rows = 0;
  for (size_t s = begin.segment; s <= end.segment; ++s) {
    const job::ParameterInfo& info = buffer.segments[s].info;
    ELA_CHECK(info.shape.size() == 2 && info.shape[1] == head.dim(1), "%s has other rows than %s",
              info.name.c_str(), std::string(first).c_str());
    rows += info.shape[0];
  }
  return Tensor(head.data(), head.dtype(), {rows, head.dim(1)});
}

Tensor ParameterStore::param(std::string_view name) const { return View(Find(name), false); }
Tensor ParameterStore::grad(std::string_view name) const { return View(Find(name), true); }
Tensor ParameterStore::FusedParam(std::string_view first, std::string_view last) const {
  return Fused(first, last, false);
}
Tensor ParameterStore::FusedGrad(std::string_view first, std::string_view last) const {
  return Fused(first, last, true);
}

Tensor ParameterStore::flat_params(ParameterClass cls) const {
  const Buffer& buffer = buffers_[static_cast<size_t>(cls)];
  return Tensor(buffer.params.data(), options_.dtype, {buffer.padded});
}

Tensor ParameterStore::flat_grads(ParameterClass cls) const {
  const Buffer& buffer = buffers_[static_cast<size_t>(cls)];
  ELA_CHECK(options_.gradients, "the store keeps no gradients");
  return Tensor(buffer.grads.data(), grad_dtype(), {buffer.padded});
}

const std::vector<ParameterSegment>& ParameterStore::segments(ParameterClass cls) const {
  return buffers_[static_cast<size_t>(cls)].segments;
}

const std::vector<ParameterBucket>& ParameterStore::buckets(ParameterClass cls) const {
  return buffers_[static_cast<size_t>(cls)].buckets;
}

int64_t ParameterStore::numel(ParameterClass cls) const {
  return buffers_[static_cast<size_t>(cls)].numel;
}

void ParameterStore::ZeroGrads() {
  if (!options_.gradients) return;
  for (const ParameterClass cls : kParameterClasses) kernels::Clear(memory(), flat_grads(cls));
}

absl::Status ParameterStore::Fill(const ParameterSource& source) {
  constexpr int64_t kPart = int64_t{1} << 20;  // elements: what passes through float at a time
  std::vector<float> part;
  std::vector<char> stored;
  for (Buffer& buffer : buffers_) {
    for (const ParameterSegment& segment : buffer.segments) {
      const int64_t numel = segment.info.numel();
      for (int64_t begin = 0; begin < numel; begin += kPart) {
        const int64_t end = std::min(numel, begin + kPart);
        part.resize(static_cast<size_t>(end - begin));
        ELA_RETURN_IF_ERROR(source(segment.info, begin, end, part.data()));
        const size_t at = static_cast<size_t>(segment.offset + begin) * SizeOf(options_.dtype);
        stored.resize(part.size() * SizeOf(options_.dtype));
        Store(stored.data(), options_.dtype, part.data(), end - begin);
        kernels::CopyIn(memory(), Tensor(buffer.params.data() + at, options_.dtype, {end - begin}),
                        stored.data());
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace ela::trainer
