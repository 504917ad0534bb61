// Encodes with a SentencePiece BPE model, with the ids of the library and in a fraction of its
// time.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "data/tokenizer/sentencepiece_model.h"

namespace ela::data {

/// The library puts one heap over the whole document. Here the text is first cut between two
/// characters that stand side by side in no piece of the vocabulary: no merge ever crosses such a
/// place, so the parts merge as they do in the whole, and most parts are words seen before.
///
/// Where the library would lose text, this one keeps it: an invalid byte becomes its byte piece
/// (there: U+FFFD), and U+2581 in the text its three byte pieces (there: a space).
class SentencePieceEncoder {
 public:
  virtual ~SentencePieceEncoder() = default;
  /// InvalidArgument if the model is not one of its kind: BPE with byte fallback, no normalisation
  /// table, no removal of whitespace, and no user-defined or unused pieces.
  static absl::StatusOr<std::unique_ptr<SentencePieceEncoder>> Create(
      const SentencePieceModel& model);
  /// Thread-safe.
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;
};

}  // namespace ela::data
