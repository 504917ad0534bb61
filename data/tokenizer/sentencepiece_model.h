// A SentencePiece model file. Its few fields that matter are read and written in the wire format
// here: Debian's library carries a protobuf of its own, which cannot live in one process with ours.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::data {

/// Fields of sentencepiece_model.proto, with its defaults.
struct SentencePieceModel {
  enum class Type {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  struct Piece {
    std::string text;
    float score = 0;
    Type type = Type::kNormal;
  };
  static constexpr int kBpe = 2;

  std::vector<Piece> pieces;  // by id
  int model_type = 1;
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  int32_t end_of_sentence = -1;  // id; -1: the model has none
  bool has_normalization_table = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/// InvalidArgument if the bytes are no such model.
absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes);

/// A model that the library loads, too.
std::string SerializeSentencePieceModel(const SentencePieceModel& model);

}  // namespace ela::data
