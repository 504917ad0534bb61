// A Tokenizer over a SentencePiece model.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "data/tokenizer.h"

namespace ela::data {

/// `bytes` of a .model file of the kind that SentencePieceEncoder knows. Decode gives back the text
/// that was encoded, whatever its bytes. Errors do not name the file.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(std::string bytes);

}  // namespace ela::data
