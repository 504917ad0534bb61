// PREFIX.json: what the .bin/.idx pair does not say about itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::data {

struct FileChecksums {
  int64_t bytes = 0;
  std::vector<std::string> xxh3;  // hex, one per 64 MiB block
};

struct Sidecar {
  std::string tokenizer_hash;  // hex XXH3 of the tokenizer's bytes
  int64_t end_of_document = -1;
  int64_t vocab_size = 0;
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t text_bytes = 0;  // of the text that was encoded
  FileChecksums bin;
  FileChecksums idx;
};

std::string SidecarToJson(const Sidecar& sidecar);
/// InvalidArgument, naming `file`, if a key is missing or of another type.
absl::StatusOr<Sidecar> SidecarFromJson(std::string_view json, const std::string& file);

/// 16 hex digits of the 64-bit XXH3 of `bytes`.
std::string HexHash(std::string_view bytes);

/// Checksums of data that arrives in pieces.
class BlockHasher {
 public:
  BlockHasher();
  ~BlockHasher();
  BlockHasher(const BlockHasher&) = delete;
  BlockHasher& operator=(const BlockHasher&) = delete;
  void Add(std::string_view bytes);
  FileChecksums Finish();

 private:
  void EndBlock();
  void* state_;
  int64_t in_block_ = 0;
  FileChecksums sums_;
};

}  // namespace ela::data
