// A Tokenizer over a byte-level BPE tokenizer.json, as Hugging Face's tokenizers writes it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "data/tokenizer.h"

namespace ela::data {

/// Supported: model BPE (merges as strings or pairs, ignore_merges), pre-tokenizers ByteLevel,
/// Split by a regular expression (isolated), Digits and Sequences of them; added tokens. The text
/// is taken as it is: a normalizer NFC is passed over, any other is refused. Special tokens are
/// never made from text. Errors do not name the file.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeByteLevelBpe(std::string bytes);

}  // namespace ela::data
