#include "trainer/inference/decoding.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::BackendMemory;
using kernels::DType;
using kernels::Tensor;

namespace {

constexpr int64_t kLeastRoom = 256;  // tokens: caches grow by doubling from here
constexpr double kGiB = 1 << 30;

BackendMemory MemoryFor(const LoadedModel& model, int64_t numel, DType dtype) {
  return {static_cast<size_t>(numel) * kernels::SizeOf(dtype), model.context().ctx.backend};
}

}  // namespace

Decoding::Decoding(LoadedModel* model, const DecodingOptions& options)
    : model_(model), options_(options) {
  const int64_t b = options.samples, v = model->spec().vocab_size();
  inputs_memory_ = MemoryFor(*model, 2 * b, DType::kI32);
  likeliest_memory_ = MemoryFor(*model, b, DType::kI32);
  logits_memory_ = MemoryFor(*model, b * v, DType::kF32);
  inputs_ = Tensor(inputs_memory_.data(), DType::kI32, {2 * b});
  likeliest_ = Tensor(likeliest_memory_.data(), DType::kI32, {b});
  logits_ = Tensor(logits_memory_.data(), DType::kF32, {b, v});
  host_likeliest_.resize(static_cast<size_t>(b));
}

absl::StatusOr<std::unique_ptr<Decoding>> Decoding::Start(LoadedModel* model,
                                                          const std::vector<int32_t>& prompt,
                                                          const DecodingOptions& options) {
  std::unique_ptr<Decoding> decoding(new Decoding(model, options));
  ELA_RETURN_IF_ERROR(decoding->ReadPrompt(prompt));
  return decoding;
}

absl::Status Decoding::ReadPrompt(const std::vector<int32_t>& prompt) {
  ELA_ASSIGN_OR_RETURN(const TokenRows rows, model_->Rows(prompt, /*closed=*/false));
  const LayerContext& layer = model_->context();
  Decoder& decoder = model_->decoder();
  cache_ = decoder.NewCache(layer, /*sequences=*/1);
  ELA_RETURN_IF_ERROR(model_->Forward(rows));
  const absl::Status filled = decoder.FillCache(layer, rows, logits_.Rows(0, 1), &cache_);
  decoder.Forget(layer);
  ELA_RETURN_IF_ERROR(filled);
  for (LayerCache& cache : cache_) cache = cache.Repeated(layer, options_.samples);
  for (int64_t i = 1; i < options_.samples; ++i) {
    kernels::Copy(layer.ctx, logits_.Rows(i, i + 1), logits_.Rows(0, 1));
  }
  kernels::RowArgmax(layer.ctx, likeliest_, logits_);
  seen_ = room_ = static_cast<int64_t>(prompt.size());
  return absl::OkStatus();
}

absl::Status Decoding::MakeRoom() {
  if (seen_ < room_ || CacheBytes(1) == CacheBytes(0)) return absl::OkStatus();
  const int64_t most = std::max(options_.most_tokens, seen_ + 1);
  const int64_t room = std::min(most, std::max(kLeastRoom, 2 * room_));
  const LayerContext& layer = model_->context();
  if (layer.ctx.device != nullptr) {
    const int64_t more = CacheBytes(room) - CacheBytes(room_);
    const auto free = static_cast<int64_t>(layer.ctx.device->free_bytes());
    if (more > free) {
      return absl::ResourceExhaustedError(absl::StrFormat(
          "key-value caches of %d tokens need %.2f GiB more on the card, %.2f GiB are free", room,
          static_cast<double>(more) / kGiB, static_cast<double>(free) / kGiB));
    }
  }
  graph_ = kernels::CudaGraph();
  for (LayerCache& cache : cache_) cache.Reserve(layer, room);
  room_ = room;
  return absl::OkStatus();
}

void Decoding::RunStep() {
  const int64_t b = options_.samples;
  const LayerContext& layer = model_->context();
  model_->decoder().Decode(layer, logits_, inputs_.Rows(0, b), inputs_.Rows(b, 2 * b), &cache_);
  kernels::RowArgmax(layer.ctx, likeliest_, logits_);
}

// After a step that ran: its scratch memory is known, kernels are loaded, products have their
// algorithms.
absl::Status Decoding::Record() {
  const LayerContext& layer = model_->context();
  layer.ctx.scratch->Reserve(layer.ctx.scratch->peak_bytes(), layer.ctx.backend);
  ELA_ASSIGN_OR_RETURN(graph_, kernels::CudaGraph::Record(*layer.ctx.device, [this] {
                         RunStep();
                         return absl::OkStatus();
                       }));
  return absl::OkStatus();
}

absl::Status Decoding::Step(const std::vector<int32_t>& ids) {
  const LayerContext& layer = model_->context();
  ELA_RETURN_IF_ERROR(MakeRoom());
  host_inputs_ = ids;
  host_inputs_.resize(2 * ids.size(), static_cast<int32_t>(seen_));
  kernels::CopyIn(layer.ctx, inputs_, host_inputs_.data());
  ++seen_;
  if (replays()) {
    graph_.Replay();
    return absl::OkStatus();
  }
  RunStep();
  return layer.ctx.device != nullptr && options_.graph ? Record() : absl::OkStatus();
}

const std::vector<float>& Decoding::Logits() {
  host_logits_.resize(static_cast<size_t>(logits_.numel()));
  kernels::CopyOut(model_->context().ctx, host_logits_.data(), logits_);
  return host_logits_;
}

const std::vector<int32_t>& Decoding::Likeliest() {
  kernels::CopyOut(model_->context().ctx, host_likeliest_.data(), likeliest_);
  return host_likeliest_;
}

int64_t Decoding::CacheBytes(int64_t tokens) const {
  int64_t bytes = 0;
  for (const LayerCache& cache : cache_) bytes += cache.bytes(tokens);
  return bytes;
}

}  // namespace ela::trainer
