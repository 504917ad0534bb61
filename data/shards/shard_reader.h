// One pair of token shards, PREFIX.bin and PREFIX.idx, mapped for reading; PREFIX.json where it
// exists.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/shards/format.h"
#include "data/shards/mapped_file.h"
#include "data/shards/sidecar.h"

namespace ela::data {

class ShardReader {
 public:
  /// Up to this many sequences Open checks every entry of the index; beyond it only sizes and ends
  /// (so that opening takes no time that grows with the corpus), every access stays in bounds, and
  /// CheckIndex does the rest.
  static constexpr int64_t kFullCheckSequences = int64_t{1} << 22;

  /// NotFound if a file is missing; InvalidArgument, one line with the file and the remedy, if it
  /// is damaged.
  static absl::StatusOr<std::unique_ptr<ShardReader>> Open(const std::string& prefix);

  const std::string& prefix() const { return prefix_; }
  TokenType type() const { return type_; }
  int64_t tokens() const { return tokens_; }
  int64_t sequences() const { return sequences_; }
  int64_t documents() const { return document_entries_ - 1; }
  const std::optional<Sidecar>& sidecar() const { return sidecar_; }

  /// First token of document d, 0 <= d <= documents(); DocumentBegin(documents()) is tokens().
  int64_t DocumentBegin(int64_t d) const;
  /// The least d with DocumentBegin(d) > token, or documents() if there is none; O(log documents).
  int64_t FirstDocumentAfter(int64_t token) const;

  /// Tokens [begin, begin + count) as int32. InvalidArgument if one is negative, above int32, or,
  /// for vocab_size > 0, not below it: the message names its offset.
  absl::Status Read(int64_t begin, int64_t count, int64_t vocab_size, int32_t* out) const;

  /// Every length, pointer and document entry; O(sequences).
  absl::Status CheckIndex() const;

  /// Identity of the content from sizes and 64 sampled blocks of each file; independent of path and
  /// sidecar.
  std::string Fingerprint() const;

  const MappedFile& bin() const { return bin_; }
  const MappedFile& idx() const { return idx_; }
  std::string bin_path() const { return prefix_ + ".bin"; }
  std::string idx_path() const { return prefix_ + ".idx"; }

 private:
  absl::Status ParseHeader();
  absl::Status CheckEnds() const;
  absl::Status LoadSidecar();
  int32_t Length(int64_t s) const { return LoadUnaligned<int32_t>(lengths_ + 4 * s); }
  int64_t Pointer(int64_t s) const { return LoadUnaligned<int64_t>(pointers_ + 8 * s); }
  int64_t DocumentEntry(int64_t d) const { return LoadUnaligned<int64_t>(documents_ + 8 * d); }

  std::string prefix_;
  MappedFile bin_;
  MappedFile idx_;
  std::optional<Sidecar> sidecar_;
  TokenType type_ = TokenType::kU16;
  int64_t token_bytes_ = 2;
  int64_t tokens_ = 0;
  int64_t sequences_ = 0;
  int64_t document_entries_ = 1;
  const char* lengths_ = nullptr;    // i32[sequences]
  const char* pointers_ = nullptr;   // i64[sequences], bytes into .bin
  const char* documents_ = nullptr;  // i64[document_entries], indices of sequences
};

}  // namespace ela::data
