// Writes one pair of token shards and its sidecar; nothing is visible under the final names before
// Seal.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/shards/format.h"
#include "data/shards/sidecar.h"

namespace ela::data {

struct ShardWriterOptions {
  std::string prefix;
  int64_t vocab_size = 0;  // decides the element type; ids must be below it
  std::string tokenizer_hash;
  int64_t end_of_document = -1;
  bool replace = false;  // false: an existing corpus is an error
};

/// One writer, one thread. Bytes go to PREFIX.<file>.partial; a writer that is destroyed unsealed
/// removes them, and a later writer overwrites what a killed one left.
class ShardWriter {
 public:
  /// AlreadyExists if the prefix holds a corpus and !replace; NotFound if its folder does not
  /// exist.
  static absl::StatusOr<std::unique_ptr<ShardWriter>> Create(const ShardWriterOptions& options);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  /// Appends one document of `ids`; `text_bytes` is the size of its text, for the counts of the
  /// sidecar.
  absl::Status Add(const std::vector<int32_t>& ids, int64_t text_bytes);
  /// Flushes and syncs all three files, then renames them, the .idx last: a corpus exists once its
  /// .idx does.
  absl::Status Seal();

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(lengths_.size()); }

 private:
  explicit ShardWriter(const ShardWriterOptions& options) : options_(options) {}
  absl::Status Flush();
  std::string IndexBytes() const;

  ShardWriterOptions options_;
  TokenType type_ = TokenType::kU16;
  int bin_fd_ = -1;
  std::string buffer_;
  BlockHasher bin_hasher_;
  std::vector<int32_t> lengths_;
  int64_t tokens_ = 0;
  int64_t text_bytes_ = 0;
  bool sealed_ = false;
};

/// Writes `bytes` to `path` through path + ".partial", synced and renamed.
absl::Status WriteFileSealed(const std::string& path, std::string_view bytes);

}  // namespace ela::data
