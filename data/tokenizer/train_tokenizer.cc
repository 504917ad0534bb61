#include "data/tokenizer/train_tokenizer.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "data/shards/shard_writer.h"
#include "data/text/input_files.h"
#include "data/text/sample.h"
#include "data/tokenizer.h"
#include "data/tokenizer/bpe_trainer.h"
#include "data/tokenizer/sentencepiece_model.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr int kSpecialPieces = 2;  // <unk> and </s>
constexpr int kBytePieces = 256;

// Special pieces, bytes, merged pieces, characters: the order in which SentencePiece lays them out.
SentencePieceModel ToModel(const TrainedBpe& trained) {
  using Type = SentencePieceModel::Type;
  SentencePieceModel model;
  model.model_type = SentencePieceModel::kBpe;
  model.byte_fallback = true;
  model.add_dummy_prefix = false;
  model.remove_extra_whitespaces = false;
  model.end_of_sentence = 1;
  model.pieces.push_back({"<unk>", 0, Type::kUnknown});
  model.pieces.push_back({"</s>", 0, Type::kControl});
  for (int b = 0; b < kBytePieces; ++b) {
    model.pieces.push_back({absl::StrFormat("<0x%02X>", b), 0, Type::kByte});
  }
  float score = 0;
  for (const auto* pieces : {&trained.merged, &trained.characters}) {
    for (const std::string& text : *pieces) {
      model.pieces.push_back(
          {absl::StrReplaceAll(text, {{" ", "\xE2\x96\x81"}}), score--, Type::kNormal});
    }
  }
  return model;
}

absl::Status CheckVocabSize(int32_t vocab_size) {
  constexpr int kLargest = 1 << 20;
  if (vocab_size > kSpecialPieces + kBytePieces && vocab_size <= kLargest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a vocabulary of ", vocab_size, ": choose more than ",
                   kSpecialPieces + kBytePieces, ", for the bytes, and at most ", kLargest));
}

}  // namespace

absl::StatusOr<std::optional<int32_t>> VocabToTrain(const std::string& tokenizer) {
  absl::string_view vocab = tokenizer;
  if (!absl::ConsumePrefix(&vocab, "train:")) return std::nullopt;
  int32_t vocab_size = 0;
  if (!absl::SimpleAtoi(vocab, &vocab_size)) {
    return absl::InvalidArgumentError(absl::StrCat("train:VOCAB: VOCAB is not a number: ", vocab));
  }
  ELA_RETURN_IF_ERROR(CheckVocabSize(vocab_size));
  return vocab_size;
}

absl::StatusOr<std::string> TrainSentencePiece(const std::vector<std::string>& texts,
                                               int32_t vocab_size) {
  if (texts.empty()) return absl::InvalidArgumentError("no text to train a tokenizer on");
  ELA_RETURN_IF_ERROR(CheckVocabSize(vocab_size));
  const auto trained = TrainBpe(texts, vocab_size - kSpecialPieces - kBytePieces);
  if (!trained.ok()) {
    return absl::Status(trained.status().code(), absl::StrCat("a vocabulary of ", vocab_size,
                                                              " is ", trained.status().message()));
  }
  return SerializeSentencePieceModel(ToModel(*trained));
}

absl::Status TrainTokenizer(const std::vector<std::string>& files, int32_t vocab_size,
                            const std::string& output) {
  ELA_ASSIGN_OR_RETURN(const auto inputs,
                       ListInputs(files, FormatChoice::kAuto, [](const std::string&) {}));
  ELA_ASSIGN_OR_RETURN(const auto texts, SampleText(inputs, {}));
  ELA_ASSIGN_OR_RETURN(const std::string model, TrainSentencePiece(texts, vocab_size));
  return WriteFileSealed(output, model);
}

}  // namespace ela::data
