#include "trainer/inference/decoding.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {

using kernels::BackendMemory;
using kernels::DType;
using kernels::Tensor;

namespace {

constexpr int64_t kLeastRoom = 256;  // tokens: caches grow by doubling from here

BackendMemory MemoryFor(const LoadedModel& model, int64_t numel, DType dtype) {
  return {static_cast<size_t>(numel) * kernels::SizeOf(dtype), model.context().ctx.backend};
}

/// What a card's memory may be larger than it was asked for: every tensor of a cache has pages.
int64_t PageBytes(const LoadedModel& model) {
  constexpr int64_t kPage = 2 << 20, kOthers = 8;
  return model.context().ctx.device == nullptr ? 0
                                               : (2 * model.spec().num_layers() + kOthers) * kPage;
}

/// The largest of least .. most that fits, where what is larger than one that doesn't does not
/// either; least - 1 if none fits.
int64_t Largest(int64_t least, int64_t most, const std::function<bool(int64_t)>& fits) {
  if (most >= least && fits(most)) return most;
  int64_t fit = least - 1;
  while (fit + 1 < most) {
    const int64_t middle = fit + (most - fit) / 2;
    (fits(middle) ? fit : most) = middle;
  }
  return fit;
}

absl::Status DoesNotFit(const LoadedModel& model, int64_t samples, int64_t tokens, int64_t needed,
                        int64_t free, int64_t samples_that_fit) {
  constexpr double kGiB = 1 << 30;
  const bool card = model.context().ctx.device != nullptr;
  const auto count = [](int64_t n) { return absl::StrCat(n, n == 1 ? " sample" : " samples"); };
  std::string instead = absl::StrCat(count(samples_that_fit), " would fit");
  if (samples_that_fit == 0) {
    instead = card ? "try a shorter text or --device cpu" : "try a shorter text";
  }
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s of %d tokens need %.2f GiB more on the %s, %.2f GiB are free: %s",
                      count(samples), tokens, static_cast<double>(needed) / kGiB,
                      card ? "card" : "machine", static_cast<double>(free) / kGiB, instead));
}

}  // namespace

Decoding::Decoding(LoadedModel* model, const DecodingOptions& options)
    : model_(model), options_(options) {
  if (!model->last_shard()) options_.samples = 1;  // it reads its part of the prompt, no more
}

absl::StatusOr<std::unique_ptr<Decoding>> Decoding::Start(LoadedModel* model,
                                                          const std::vector<int32_t>& prompt,
                                                          const DecodingOptions& options) {
  ELA_ASSIGN_OR_RETURN(const TokenRows rows, model->Rows(prompt, /*closed=*/false));
  std::unique_ptr<Decoding> decoding(new Decoding(model, options));
  const auto length = static_cast<int64_t>(prompt.size());
  const absl::Status mine = decoding->ChooseRoom(length, rows.count());
  ELA_RETURN_IF_ERROR(model->sequence() == nullptr ? mine : AgreeOk(*model->sequence(), mine));
  ELA_RETURN_IF_ERROR(decoding->ReadPrompt(rows));
  decoding->seen_ = length;
  return decoding;
}

Decoding::CacheSize Decoding::SizeOf(int64_t samples, int64_t tokens) const {
  const LayerContext& layer = model_->context();
  CacheSize size;
  for (int64_t i = 0; i < model_->spec().num_layers(); ++i) {
    const ResidualLayer& l = model_->decoder().layer(i);
    const int64_t bytes = l.CacheBytes(layer, samples, tokens);
    size.all += bytes;
    size.largest = std::max(size.largest, bytes - l.CacheBytes(layer, samples, 0));
  }
  return size;
}

// Of the prompt, and then of the steps.
PassMemory Decoding::PassesOf(int64_t samples, int64_t rows) const {
  const PassMemory prompt = model_->MemoryOf(1, rows), step = model_->MemoryOf(samples, 1);
  return {prompt.saved, std::max(prompt.scratch, step.scratch)};
}

// The prompt's caches are held until all samples have theirs; the last of several ranks gathers
// keys and values of the prompt, a layer at a time; a step merges parts of a layer's sums, which
// are smaller than a sixty-fourth of its cache. A card gives memory by pages.
int64_t Decoding::BytesToStart(int64_t samples, int64_t rows, int64_t room) const {
  const CacheSize all = SizeOf(samples, room), one = SizeOf(1, room);
  int64_t bytes = model_->Lacking(PassesOf(samples, rows)) + all.all + all.largest / 64;
  if (samples > 1) bytes += one.all;
  if (model_->shards() > 1) bytes += one.largest;
  bytes += samples * (model_->spec().vocab_size() + 3) * int64_t{sizeof(float)};
  return bytes + PageBytes(*model_);
}

// A layer at a time: its old memory goes when the new one is filled.
int64_t Decoding::BytesToGrow(int64_t samples, int64_t room) const {
  const CacheSize now = SizeOf(samples, room_), then = SizeOf(samples, room);
  return then.all - now.all + now.largest + then.largest / 64 + PageBytes(*model_);
}

absl::Status Decoding::ChooseRoom(int64_t prompt, int64_t rows) {
  const int64_t b = options_.samples, free = model_->FreeBytes();
  const auto needed = [&](int64_t samples, int64_t room) {
    return BytesToStart(samples, rows, room);
  };
  int64_t least = 0, wanted = 0;  // of a rank that hands its keys and values on
  if (model_->last_shard()) {
    least = std::min(prompt + 1, std::max(prompt, options_.most_tokens));
    wanted =
        std::clamp(std::max(kLeastRoom, 2 * prompt), least, std::max(least, options_.most_tokens));
  }
  room_ = Largest(least, wanted, [&](int64_t room) { return needed(b, room) <= free; });
  if (room_ >= least) return absl::OkStatus();
  return DoesNotFit(*model_, b, std::max(least, rows), needed(b, least), free,
                    Largest(1, b - 1, [&](int64_t n) { return needed(n, least) <= free; }));
}

absl::Status Decoding::ReadPrompt(const TokenRows& rows) {
  const int64_t b = options_.samples, v = model_->spec().vocab_size();
  const LayerContext& layer = model_->context();
  Decoder& decoder = model_->decoder();
  decoder.Forget(layer);
  model_->Reserve(PassesOf(b, rows.count()));
  inputs_memory_ = MemoryFor(*model_, 2 * b, DType::kI32);
  likeliest_memory_ = MemoryFor(*model_, b, DType::kI32);
  logits_memory_ = MemoryFor(*model_, b * v, DType::kF32);
  inputs_ = Tensor(inputs_memory_.data(), DType::kI32, {2 * b});
  likeliest_ = Tensor(likeliest_memory_.data(), DType::kI32, {b});
  logits_ = Tensor(logits_memory_.data(), DType::kF32, {b, v});
  host_likeliest_.resize(static_cast<size_t>(b));
  cache_ = decoder.NewCache(layer, /*sequences=*/1);
  for (LayerCache& cache : cache_) cache.Reserve(layer, room_);

  ELA_RETURN_IF_ERROR(model_->Forward(rows));
  const absl::Status filled = decoder.FillCache(layer, rows, logits_.Rows(0, 1), &cache_);
  decoder.Forget(layer);
  ELA_RETURN_IF_ERROR(filled);
  for (LayerCache& cache : cache_) {
    if (b > 1) cache = cache.Repeated(layer, b);
  }
  for (int64_t i = 1; i < b; ++i) {
    kernels::Copy(layer.ctx, logits_.Rows(i, i + 1), logits_.Rows(0, 1));
  }
  kernels::RowArgmax(layer.ctx, likeliest_, logits_);
  return absl::OkStatus();
}

absl::Status Decoding::MakeRoom() {
  if (seen_ < room_ || SizeOf(1, 1).largest == 0) return absl::OkStatus();
  const int64_t b = options_.samples, least = seen_ + 1, free = model_->FreeBytes();
  const int64_t wanted =
      std::clamp(std::max(kLeastRoom, 2 * room_), least, std::max(least, options_.most_tokens));
  const int64_t room =
      Largest(least, wanted, [&](int64_t tokens) { return BytesToGrow(b, tokens) <= free; });
  if (room < least) {
    const int64_t held = SizeOf(b, room_).all;
    const auto fits = [&](int64_t n) {
      return BytesToGrow(n, least) <= free + held - SizeOf(n, room_).all;
    };
    return DoesNotFit(*model_, b, least, BytesToGrow(b, least), free, Largest(1, b - 1, fits));
  }
  graph_ = kernels::CudaGraph();
  for (LayerCache& cache : cache_) cache.Reserve(model_->context(), room);
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
  model_->Reserve({0, static_cast<int64_t>(layer.ctx.scratch->peak_bytes())});
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

}  // namespace ela::trainer
