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

/// How much of a corpus is safe on disk: what a build that was interrupted goes on from.
struct ShardProgress {
  int64_t documents = 0;    // ended
  int64_t tokens = 0;       // of all documents, the open one included
  int64_t text_bytes = 0;   // likewise
  int64_t open_tokens = 0;  // of the document that Append began and EndDocument did not end
};

/// One writer, one thread. Bytes go to PREFIX.<file>.partial; a writer that is destroyed unsealed
/// removes them if nothing was committed, and a later writer overwrites what a killed one left.
class ShardWriter {
 public:
  /// AlreadyExists if the prefix holds a corpus and !replace; NotFound if its folder does not
  /// exist.
  static absl::StatusOr<std::unique_ptr<ShardWriter>> Create(const ShardWriterOptions& options);
  /// Goes on from what was committed; InvalidArgument if the files hold less.
  static absl::StatusOr<std::unique_ptr<ShardWriter>> Resume(const ShardWriterOptions& options,
                                                             const ShardProgress& progress);
  /// Carries out what a Seal that was killed left undone. False if it had not come to its renames.
  static absl::StatusOr<bool> FinishSeal(const std::string& prefix);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  /// Appends one document of `ids`; `text_bytes` is the size of its text, for the counts of the
  /// sidecar.
  absl::Status Add(const std::vector<int32_t>& ids, int64_t text_bytes);
  /// The same in pieces: any number of Append, then EndDocument.
  absl::Status Append(const std::vector<int32_t>& ids, int64_t text_bytes);
  absl::Status EndDocument();
  /// Syncs what was added, so that Resume can go on from the progress returned.
  absl::StatusOr<ShardProgress> Commit();
  /// Flushes and syncs all three files, then renames them, the .idx last: a corpus exists once its
  /// .idx does.
  absl::Status Seal();

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t text_bytes() const { return text_bytes_; }
  int64_t open_tokens() const { return open_tokens_; }

 private:
  explicit ShardWriter(const ShardWriterOptions& options)
      : options_(options), type_(TypeForVocab(options.vocab_size)) {}
  std::string Path(const char* suffix) const { return options_.prefix + suffix + ".partial"; }
  absl::Status OpenBin(int flags);
  absl::Status ReadBack(const ShardProgress& progress);
  absl::Status Flush();
  std::string IndexBytes() const;

  ShardWriterOptions options_;
  TokenType type_;
  int bin_fd_ = -1;
  std::string buffer_;
  BlockHasher bin_hasher_;
  std::vector<int32_t> lengths_;
  int64_t tokens_ = 0;
  int64_t text_bytes_ = 0;
  int64_t open_tokens_ = 0;
  size_t lengths_committed_ = 0;
  bool keep_ = false;  // something was committed
  bool sealed_ = false;
};

/// Writes `bytes` to `path` through path + ".partial", synced and renamed.
absl::Status WriteFileSealed(const std::string& path, std::string_view bytes);

}  // namespace ela::data
