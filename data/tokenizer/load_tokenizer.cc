#include <utility>

#include "absl/strings/str_cat.h"
#include "data/shards/mapped_file.h"
#include "data/tokenizer.h"
#include "data/tokenizer/byte_level_bpe.h"
#include "data/tokenizer/sentencepiece_tokenizer.h"
#include "proto/status_macros.h"

namespace ela::data {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  auto file = MappedFile::Open(path);
  if (absl::IsNotFound(file.status())) {
    return absl::NotFoundError(
        absl::StrCat(path,
                     ": no such file; a tokenizer is a SentencePiece .model or a Hugging Face "
                     "tokenizer.json, and ela-data build --tokenizer train:VOCAB makes one"));
  }
  ELA_RETURN_IF_ERROR(file.status());
  std::string bytes(file->view());
  const size_t first = bytes.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
  const bool json = first != std::string::npos && bytes[first] == '{';
  auto tokenizer =
      json ? MakeByteLevelBpe(std::move(bytes)) : MakeSentencePieceTokenizer(std::move(bytes));
  if (tokenizer.ok()) return tokenizer;
  return absl::Status(tokenizer.status().code(),
                      absl::StrCat(path, ": ", tokenizer.status().message()));
}

}  // namespace ela::data
