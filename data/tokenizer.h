// Tokenizers: text to ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::data {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Thread-safe. Any bytes are legal (byte fallback); Decode(Encode(x)) == x for valid UTF-8 under an identity normaliser.
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;
  virtual std::string Decode(const std::vector<int32_t>& ids) const = 0;
  virtual int32_t vocab_size() const = 0;
  /// Put after every document; also what ends generation.
  virtual int32_t end_of_document() const = 0;
  /// XXH3 of the model's bytes, hex: stored with shards and checkpoints.
  virtual const std::string& hash() const = 0;
  /// The model's own bytes: exported with a model, stored beside shards.
  virtual const std::string& serialized() const = 0;
};

/// A SentencePiece model or a byte-level BPE tokenizer.json. NotFound, or InvalidArgument that says what is wrong with it.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

/// Trains a SentencePiece BPE model with byte fallback on `files` (identity normalisation, whitespace kept, so that code
/// round-trips) and writes it to `output`.
absl::Status TrainTokenizer(const std::vector<std::string>& files, int32_t vocab_size, const std::string& output);

}  // namespace ela::data
