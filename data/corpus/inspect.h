// What is in a corpus, and whether it is whole.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::data {

struct CorpusInfo {
  std::string prefix;
  std::string token_type;
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t shortest = 0;  // document, tokens
  int64_t median = 0;
  int64_t longest = 0;
  int64_t bin_bytes = 0;
  int64_t idx_bytes = 0;
  bool has_sidecar = false;
  // Of the sidecar:
  int64_t text_bytes = 0;
  int64_t vocab_size = 0;
  int64_t end_of_document = -1;
  std::string tokenizer_hash;
  std::string tokenizer_path;  // beside the shards; empty if none with that hash is there
};

absl::StatusOr<CorpusInfo> Inspect(const std::string& prefix);

/// The text of document `document`, by the tokenizer at `tokenizer_path` or, if that is empty, the
/// one beside the shards.
absl::StatusOr<std::string> DocumentText(const std::string& prefix, int64_t document,
                                         const std::string& tokenizer_path);

struct VerifyResult {
  int64_t checked_bytes = 0;
  bool checksums = false;             // there was a sidecar to check against
  std::vector<std::string> problems;  // one line each: file and what; empty: the corpus is whole
};

/// Reads everything: index, checksums, range of ids, the end of every document, the tokenizer
/// beside the shards. Fails only if the corpus cannot be opened.
absl::StatusOr<VerifyResult> Verify(const std::string& prefix);

/// The tokenizer that a build stored beside `prefix`; empty if there is none.
std::string TokenizerBeside(const std::string& prefix);

}  // namespace ela::data
