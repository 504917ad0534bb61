// Generation: the prompt in one forward pass, then one token at a time with the states of fixed
// size (model.md 1.4; decoding.h). Samples of one prompt are decoded together. On several ranks
// each takes a shard of the prompt; the last one, to which the states lead, decodes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/inference/loaded_model.h"
#include "trainer/inference/sampler.h"

namespace ela::trainer {

struct GenerateOptions {
  int64_t max_tokens = 128;
  int64_t samples = 1;
  SamplerConfig sampler;
  bool stop_at_end_of_document = true;
  bool graph = true;  // on a card: as in DecodingOptions
};

struct Generation {
  std::vector<std::vector<int32_t>> tokens;  // [samples] without the prompt
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decoded_tokens = 0;
  int64_t state_bytes = 0;    // ELA states of all samples: the same at any length
  int64_t cache_bytes = 0;    // key-value caches of softmax layers, of all samples, at the end
  int64_t softmax_bytes = 0;  // what key-value caches in every layer would hold instead of both
};

/// InvalidArgument if the model cannot generate: it was trained to see what comes after a token.
absl::Status CheckGenerates(const LoadedModel& model);

/// `on_token(sample, id)` is called for each token as it is drawn; false ends the generation.
/// InvalidArgument if the model cannot generate or the prompt holds an id out of the vocabulary;
/// ResourceExhausted, with what would fit, if memory lacks for it.
/// Collective over the ranks of the model; those before the last one draw no token.
absl::StatusOr<Generation> Generate(
    LoadedModel* model, const std::vector<int32_t>& prompt, const GenerateOptions& options,
    const std::function<bool(int64_t sample, int32_t id)>& on_token);

/// Turns tokens into text as they come: gives out whole UTF-8 characters only.
class TextStream {
 public:
  explicit TextStream(const data::Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  /// The text that `id` completes, often empty for a byte of a longer character.
  std::string Push(int32_t id);
  /// What is left: bytes of a character that never became whole.
  std::string Finish();

 private:
  const data::Tokenizer* tokenizer_;
  std::vector<int32_t> pending_;  // the latest tokens that made a whole text, and those since
  int context_ = 0;               // how many of them made it
  size_t shown_ = 0;              // bytes of pending_'s text that are given out
};

}  // namespace ela::trainer
