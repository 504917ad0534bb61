// From a chunk of input to pieces of documents in tokens: the part of a build that runs in
// parallel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/text/chunk_reader.h"
#include "data/tokenizer.h"

namespace ela::data {

struct EncodedPiece {
  std::vector<int32_t> ids;  // with the end-of-document token if ends_document
  int64_t text_bytes = 0;
  bool ends_document = true;
};

struct EncodedChunk {
  std::vector<EncodedPiece> pieces;
  std::vector<std::string> notices;
  int64_t skipped_lines = 0;
  int64_t skipped_files = 0;  // as in Chunk
  ReadPosition next;
};

struct EncodeOptions {
  std::string text_key = "text";
  bool skip_bad_lines = false;
  bool cut_long_texts = false;  // so that a part of a long text file can be held out
};

/// With cut_long_texts pieces of text files of more than 128 KiB are about 64 KiB, cut behind
/// lines.
absl::StatusOr<EncodedChunk> EncodeChunk(const Chunk& chunk, const Tokenizer& tokenizer,
                                         const EncodeOptions& options);

}  // namespace ela::data
