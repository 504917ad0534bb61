// The loader: token shards to batches, stateless. Sample k of a run depends on (seed, weights, k) alone, never on the mesh.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::data {

struct Source {
  std::string prefix;  // of .bin and .idx
  double weight = 1;
};

struct LoaderOptions {
  std::vector<Source> sources;
  int64_t seq_len = 0;      // L
  uint64_t seed = 0;
  bool document_mask = true;
  bool shuffle = true;      // false: windows in order, for evaluation
  int64_t vocab_size = 0;   // a larger id in a shard is an error that names it; 0: unchecked
  std::string tokenizer_hash;  // must equal the sidecar's, if both exist; empty: unchecked
};

/// Rows [token_begin, token_end) of `sequences` samples: what one sequence shard of one replica trains on. l = end - begin.
struct Batch {
  int64_t sequences = 0;
  int64_t length = 0;               // l
  std::vector<int32_t> ids;         // [B, l]
  std::vector<int32_t> targets;     // [B, l]; -1: no target (document end under document_mask)
  std::vector<int32_t> positions;   // [B, l] from the start of the document (document_mask) or of the sequence
  /// Global offsets in [0, L) at which documents of each sequence start, ascending; the first is 0. Same on every shard.
  std::vector<std::vector<int64_t>> document_starts;  // [B]
  int64_t valid_targets = 0;        // targets >= 0 in this slice
};

class Loader {
 public:
  /// Maps the shards: time and memory do not grow with the corpus. Errors name the file and the remedy.
  static absl::StatusOr<std::unique_ptr<Loader>> Open(const LoaderOptions& options);
  virtual ~Loader() = default;

  /// Samples first_sample .. first_sample + sequences - 1 of the run, rows [token_begin, token_end) of each.
  virtual absl::Status Fill(int64_t first_sample, int64_t sequences, int64_t token_begin, int64_t token_end,
                            Batch* batch) const = 0;
  /// Windows per epoch, all sources.
  virtual int64_t samples_per_epoch() const = 0;
  /// Hash of shards, seed, weights, seq_len and document_mask: a resume with another one is refused or reported.
  virtual const std::string& fingerprint() const = 0;
};

}  // namespace ela::data
