#include "data/corpus/encode_chunk.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/text/json_lines.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr size_t kWholeBytes = size_t{128} << 10;
constexpr size_t kPieceBytes = size_t{64} << 10;

EncodedPiece EncodePiece(std::string_view text, bool ends_document, const Tokenizer& tokenizer) {
  EncodedPiece piece;
  piece.ids = tokenizer.Encode(text);
  if (ends_document) piece.ids.push_back(tokenizer.end_of_document());
  piece.text_bytes = static_cast<int64_t>(text.size());
  piece.ends_document = ends_document;
  return piece;
}

void EncodeText(const Chunk& chunk, const Tokenizer& tokenizer, bool cut, EncodedChunk* out) {
  std::string_view text = chunk.bytes;
  const bool is_long = !chunk.begins_file || !chunk.ends_file || text.size() > kWholeBytes;
  if (cut && is_long) {
    while (text.size() > kPieceBytes) {
      const size_t newline = text.find('\n', kPieceBytes - 1);
      if (newline == std::string_view::npos || newline + 1 == text.size()) break;
      out->pieces.push_back(EncodePiece(text.substr(0, newline + 1), false, tokenizer));
      text.remove_prefix(newline + 1);
    }
  }
  out->pieces.push_back(EncodePiece(text, chunk.ends_file, tokenizer));
}

absl::Status EncodeJsonLines(const Chunk& chunk, const Tokenizer& tokenizer,
                             const EncodeOptions& options, EncodedChunk* out) {
  std::string_view rest = chunk.bytes;
  for (int64_t number = chunk.first_line; !rest.empty(); ++number) {
    const size_t newline = rest.find('\n');
    const std::string_view line = rest.substr(0, newline);
    rest.remove_prefix(newline == std::string_view::npos ? rest.size() : newline + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto text = TextOfJsonLine(line, options.text_key);
    if (text.ok()) {
      if (!text->empty()) out->pieces.push_back(EncodePiece(*text, true, tokenizer));
      continue;
    }
    const std::string what =
        absl::StrCat(chunk.input->path, ":", number, ": ", text.status().message());
    if (!options.skip_bad_lines) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, "; mend the line, or pass --skip-bad-lines"));
    }
    ++out->skipped_lines;
    out->notices.push_back(absl::StrCat(what, "; skipped"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<EncodedChunk> EncodeChunk(const Chunk& chunk, const Tokenizer& tokenizer,
                                         const EncodeOptions& options) {
  EncodedChunk out;
  out.next = chunk.next;
  out.skipped_files = chunk.skipped_files;
  if (chunk.input->format == TextFormat::kText) {
    EncodeText(chunk, tokenizer, options.cut_long_texts, &out);
  } else {
    ELA_RETURN_IF_ERROR(EncodeJsonLines(chunk, tokenizer, options, &out));
  }
  return out;
}

}  // namespace ela::data
