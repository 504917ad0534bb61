// Training of a tokenizer on texts in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::data {

/// VOCAB where `tokenizer` is "train:VOCAB", nothing where it is a path. InvalidArgument if VOCAB
/// is not the size of a vocabulary.
absl::StatusOr<std::optional<int32_t>> VocabToTrain(const std::string& tokenizer);

/// The bytes of a SentencePiece BPE model: byte fallback, identity normalisation, no dummy prefix,
/// whitespace kept, single digits, piece 0 unknown, piece 1 </s> ends documents. The same texts
/// give the same bytes. InvalidArgument if the vocabulary is too small, or too large for the texts.
absl::StatusOr<std::string> TrainSentencePiece(const std::vector<std::string>& texts,
                                               int32_t vocab_size);

}  // namespace ela::data
