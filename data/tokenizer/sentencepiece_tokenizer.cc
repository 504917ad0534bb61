#include "data/tokenizer/sentencepiece_tokenizer.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "data/shards/sidecar.h"
#include "data/tokenizer/sentencepiece_encoder.h"
#include "data/tokenizer/sentencepiece_model.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

using Type = SentencePieceModel::Type;

constexpr char kSpaceMark[] = "\xE2\x96\x81";

class SentencePieceTokenizer final : public Tokenizer {
 public:
  absl::Status Load(std::string bytes);
  std::vector<int32_t> Encode(std::string_view text) const override;
  std::string Decode(const std::vector<int32_t>& ids) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(model_.pieces.size()); }
  int32_t end_of_document() const override { return model_.end_of_sentence; }
  const std::string& hash() const override { return hash_; }
  const std::string& serialized() const override { return bytes_; }

 private:
  SentencePieceModel model_;
  std::string bytes_;
  std::string hash_;
  std::vector<std::string> texts_;  // of each piece, when decoded
  std::unique_ptr<SentencePieceEncoder> encoder_;
};

absl::Status SentencePieceTokenizer::Load(std::string bytes) {
  ELA_ASSIGN_OR_RETURN(model_, ParseSentencePieceModel(bytes));
  if (model_.end_of_sentence < 0) {
    return absl::InvalidArgumentError(
        "the SentencePiece model has no end-of-sentence piece, which ends documents: train it "
        "with --eos_id");
  }
  ELA_ASSIGN_OR_RETURN(encoder_, SentencePieceEncoder::Create(model_));
  for (const SentencePieceModel::Piece& piece : model_.pieces) {
    unsigned value = 0;
    if (piece.type == Type::kControl) {
      texts_.emplace_back();
    } else if (piece.type == Type::kByte &&
               std::sscanf(piece.text.c_str(), "<0x%2X>", &value) == 1) {
      texts_.emplace_back(1, static_cast<char>(value));
    } else if (piece.type == Type::kUnknown) {
      texts_.emplace_back(" \xE2\x81\x87 ");  // as the library shows it
    } else {
      texts_.push_back(absl::StrReplaceAll(piece.text, {{kSpaceMark, " "}}));
    }
  }
  hash_ = HexHash(bytes);
  bytes_ = std::move(bytes);
  return absl::OkStatus();
}

std::vector<int32_t> SentencePieceTokenizer::Encode(std::string_view text) const {
  return encoder_->Encode(text);
}

std::string SentencePieceTokenizer::Decode(const std::vector<int32_t>& ids) const {
  std::string text;
  bool prefix = model_.add_dummy_prefix;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) continue;
    std::string_view piece = texts_[id];
    if (prefix && !piece.empty()) {
      if (piece[0] == ' ') piece.remove_prefix(1);
      prefix = false;
    }
    text.append(piece);
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(std::string bytes) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>();
  ELA_RETURN_IF_ERROR(tokenizer->Load(std::move(bytes)));
  return tokenizer;
}

}  // namespace ela::data
