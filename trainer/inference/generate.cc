#include "trainer/inference/generate.h"

#include "absl/time/clock.h"
#include "proto/job/text.h"
#include "proto/status_macros.h"
#include "trainer/inference/decoding.h"

namespace ela::trainer {

namespace {

// The next token of every sample, and which have ended.
class Samples {
 public:
  Samples(LoadedModel* model, const GenerateOptions& options)
      : vocab_(model->spec().vocab_size()),
        options_(options),
        next_(static_cast<size_t>(options.samples)),
        ended_(static_cast<size_t>(options.samples)) {
    const auto tokenizer = model->tokenizer();
    if (options.stop_at_end_of_document && tokenizer.ok()) end_ = (*tokenizer)->end_of_document();
  }

  // Draws the next token of every sample. False: all have ended.
  bool Draw(Decoding* decoding, const std::function<bool(int64_t, int32_t)>& on_token,
            Generation* out) {
    const bool greedy = options_.sampler.temperature <= 0;
    const int32_t* likeliest = greedy ? decoding->Likeliest().data() : nullptr;
    const float* logits = greedy ? nullptr : decoding->Logits().data();
    bool going = false;
    for (size_t i = 0; i < next_.size(); ++i) {
      if (ended_[i]) continue;
      next_[i] = greedy ? likeliest[i]
                        : SampleToken(logits + static_cast<int64_t>(i) * vocab_, vocab_,
                                      options_.sampler, i, static_cast<uint64_t>(decoding->seen()));
      ended_[i] = next_[i] == end_;
      if (ended_[i]) continue;
      out->tokens[i].push_back(next_[i]);
      if (!on_token(static_cast<int64_t>(i), next_[i])) return false;
      going = true;
    }
    return going;
  }
  const std::vector<int32_t>& next() const { return next_; }

 private:
  int64_t vocab_;
  const GenerateOptions& options_;
  std::vector<int32_t> next_;
  std::vector<bool> ended_;
  int32_t end_ = -1;
};

// Bytes of `text` that later tokens cannot change: up to a character that is not whole yet, which
// some tokenizers give as U+FFFD.
size_t WholeBytes(const std::string& text) {
  constexpr char kReplacement[] = "\xef\xbf\xbd";
  size_t whole = job::FirstInvalidUtf8(text).value_or(text.size());
  while (whole >= 3 && text.compare(whole - 3, 3, kReplacement) == 0) whole -= 3;
  return whole;
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
  Samples samples(model, options);

  const absl::Time begin = absl::Now();
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<Decoding> decoding,
                       Decoding::Start(model, prompt,
                                       {.samples = options.samples,
                                        .most_tokens = out.prompt_tokens + options.max_tokens,
                                        .graph = options.graph}));
  model->Synchronize();
  const absl::Time prefilled = absl::Now();
  for (int64_t i = 0; i < options.max_tokens && model->last_shard(); ++i) {
    if (!samples.Draw(decoding.get(), on_token, &out) || i + 1 == options.max_tokens) break;
    ELA_RETURN_IF_ERROR(decoding->Step(samples.next()));
  }
  out.prefill_seconds = absl::ToDoubleSeconds(prefilled - begin);
  out.decode_seconds = absl::ToDoubleSeconds(absl::Now() - prefilled);
  for (const auto& tokens : out.tokens) out.decoded_tokens += static_cast<int64_t>(tokens.size());
  out.state_bytes = decoding->state_bytes();
  out.cache_bytes = decoding->cache_bytes();
  const v1::ModelSpec& spec = model->spec();
  out.softmax_bytes = (out.prompt_tokens * options.samples + out.decoded_tokens) *
                      spec.num_layers() * 2 * spec.hidden_size() *
                      static_cast<int64_t>(kernels::SizeOf(model->context().element));
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
