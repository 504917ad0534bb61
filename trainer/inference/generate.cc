#include "trainer/inference/generate.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "kernels/ops.h"
#include "proto/job/text.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

namespace {

// Sequences under way: what each is at, and which have ended.
class Batch {
 public:
  Batch(LoadedModel* model, const GenerateOptions& options, int64_t prompt_tokens)
      : model_(model),
        options_(options),
        vocab_(model->spec().vocab_size()),
        logits_(static_cast<size_t>(options.samples * vocab_)),
        next_(static_cast<size_t>(options.samples)),
        positions_(static_cast<size_t>(options.samples), static_cast<int32_t>(prompt_tokens)),
        ended_(static_cast<size_t>(options.samples)) {
    const auto tokenizer = model->tokenizer();
    if (options.stop_at_end_of_document && tokenizer.ok()) end_ = (*tokenizer)->end_of_document();
  }

  Tensor logits() { return Tensor::Of(logits_.data(), {options_.samples, vocab_}); }

  // Draws the next token of every sample. False: all have ended.
  bool Draw(const std::function<bool(int64_t, int32_t)>& on_token, Generation* out) {
    bool going = false;
    for (size_t i = 0; i < next_.size(); ++i) {
      if (ended_[i]) continue;
      next_[i] = SampleToken(logits_.data() + static_cast<int64_t>(i) * vocab_, vocab_,
                             options_.sampler, i, static_cast<uint64_t>(positions_[i]));
      ended_[i] = next_[i] == end_;
      if (ended_[i]) continue;
      out->tokens[i].push_back(next_[i]);
      if (!on_token(static_cast<int64_t>(i), next_[i])) return false;
      going = true;
    }
    return going;
  }

  absl::Status Step(std::vector<LayerCache>* cache) {
    const int64_t b = options_.samples;
    ELA_RETURN_IF_ERROR(model_->decoder().Decode(model_->context(), logits(),
                                                 Tensor::Of(next_.data(), {b}),
                                                 Tensor::Of(positions_.data(), {b}), cache));
    for (int32_t& position : positions_) ++position;
    return absl::OkStatus();
  }

 private:
  LoadedModel* model_;
  const GenerateOptions& options_;
  int64_t vocab_;
  std::vector<float> logits_;
  std::vector<int32_t> next_, positions_;
  std::vector<bool> ended_;
  int32_t end_ = -1;
};

// The prompt, once for all samples: what each has seen, and the logits [samples, V] after it.
absl::StatusOr<std::vector<LayerCache>> Prefill(LoadedModel* model,
                                                const std::vector<int32_t>& prompt, Tensor logits) {
  ELA_ASSIGN_OR_RETURN(const TokenRows rows, model->Rows(prompt, /*closed=*/false));
  const LayerContext& layer = model->context();
  Decoder& decoder = model->decoder();
  std::vector<LayerCache> caches = decoder.NewCache(layer, /*sequences=*/1);
  ELA_RETURN_IF_ERROR(decoder.Forward(layer, rows, /*routing=*/nullptr));
  const absl::Status filled = decoder.FillCache(layer, rows, logits.Rows(0, 1), &caches);
  decoder.Forget(layer);
  ELA_RETURN_IF_ERROR(filled);
  const int64_t samples = logits.dim(0);
  for (LayerCache& cache : caches) cache = cache.Repeated(samples);
  for (int64_t i = 1; i < samples; ++i) {
    kernels::Copy(layer.ctx, logits.Rows(i, i + 1), logits.Rows(0, 1));
  }
  return caches;
}

// Bytes of `text` that later tokens cannot change: up to a character that is not whole yet, which
// some tokenizers give as U+FFFD.
size_t WholeBytes(const std::string& text) {
  constexpr char kReplacement[] = "\xef\xbf\xbd";
  size_t whole = job::FirstInvalidUtf8(text).value_or(text.size());
  while (whole >= 3 && text.compare(whole - 3, 3, kReplacement) == 0) whole -= 3;
  return whole;
}

int64_t BytesOf(const std::vector<LayerCache>& cache) {
  int64_t bytes = 0;
  for (const LayerCache& layer : cache) bytes += layer.bytes();
  return bytes;
}

}  // namespace

absl::Status CheckGenerates(const LoadedModel& model) {
  if (model.causal()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      model.leaks_future()
          ? "the model's memory lobe is bidirectional: it saw its targets in training and cannot "
            "generate"
          : "the model was trained on masked tokens with bidirectional attention: it cannot "
            "generate");
}

absl::StatusOr<Generation> Generate(LoadedModel* model, const std::vector<int32_t>& prompt,
                                    const GenerateOptions& options,
                                    const std::function<bool(int64_t, int32_t)>& on_token) {
  ELA_RETURN_IF_ERROR(CheckGenerates(*model));
  Generation out;
  out.prompt_tokens = static_cast<int64_t>(prompt.size());
  out.tokens.resize(static_cast<size_t>(options.samples));
  Batch batch(model, options, out.prompt_tokens);

  const absl::Time begin = absl::Now();
  ELA_ASSIGN_OR_RETURN(std::vector<LayerCache> cache, Prefill(model, prompt, batch.logits()));
  const absl::Time prefilled = absl::Now();
  for (int64_t i = 0; i < options.max_tokens && model->last_shard(); ++i) {
    if (!batch.Draw(on_token, &out) || i + 1 == options.max_tokens) break;
    ELA_RETURN_IF_ERROR(batch.Step(&cache));
  }
  out.prefill_seconds = absl::ToDoubleSeconds(prefilled - begin);
  out.decode_seconds = absl::ToDoubleSeconds(absl::Now() - prefilled);
  for (const auto& tokens : out.tokens) out.decoded_tokens += static_cast<int64_t>(tokens.size());
  // What has seen nothing holds its states already, and no key.
  out.state_bytes = BytesOf(model->decoder().NewCache(model->context(), options.samples));
  out.cache_bytes = BytesOf(cache) - out.state_bytes;
  const v1::ModelSpec& spec = model->spec();
  out.softmax_bytes = (out.prompt_tokens * options.samples + out.decoded_tokens) *
                      spec.num_layers() * 2 * spec.hidden_size() * int64_t{sizeof(float)};
  return out;
}

std::string TextStream::Push(int32_t id) {
  pending_.push_back(id);
  const std::string text = tokenizer_->Decode(pending_);
  const size_t whole = WholeBytes(text);
  if (whole <= shown_) return "";
  std::string fresh = text.substr(shown_, whole - shown_);
  shown_ = whole;
  // The tokens of the latest whole text stay as context: decoding may look at a token's neighbour.
  if (whole == text.size()) {
    pending_.erase(pending_.begin(), pending_.begin() + context_);
    context_ = static_cast<int>(pending_.size());
    shown_ = tokenizer_->Decode(pending_).size();
  }
  return fresh;
}

std::string TextStream::Finish() {
  const std::string text = tokenizer_->Decode(pending_);
  std::string rest = text.size() > shown_ ? text.substr(shown_) : "";
  pending_.clear();
  context_ = 0;
  shown_ = 0;
  return rest;
}

}  // namespace ela::trainer
