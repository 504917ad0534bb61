// What a build needs to go on after an interruption: PREFIX.build.json, there while a build is
// unfinished.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/shards/shard_writer.h"
#include "data/text/chunk_reader.h"

namespace ela::data {

struct BuildJournal {
  std::string fingerprint;            // of inputs and options
  std::string tokenizer_hash;         // of the tokenizer in use
  ReadPosition position;              // everything before it is in the committed shards
  std::vector<ShardProgress> shards;  // one a corpus; empty before the first commit
  int open_corpus = -1;               // where a document is being continued
  int64_t skipped_files = 0;
  int64_t skipped_lines = 0;
  bool sealing = false;  // all is read
};

std::string JournalPath(const std::string& prefix);
absl::Status WriteJournal(const std::string& prefix, const BuildJournal& journal);
/// Nothing if there is none, or if it is unreadable: then the build starts anew.
std::optional<BuildJournal> ReadJournal(const std::string& prefix);
void RemoveJournal(const std::string& prefix);

}  // namespace ela::data
