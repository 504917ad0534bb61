// Builds token shards from text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/text/input_files.h"

namespace ela::data {

struct BuildOptions {
  std::vector<std::string> inputs;
  FormatChoice format = FormatChoice::kAuto;
  std::string text_key = "text";
  bool skip_bad_lines = false;
  std::string tokenizer;           // a path, or train:VOCAB
  std::string output;              // prefix
  double validation_fraction = 0;  // of the text; > 0: PREFIX.train and PREFIX.validation
  int threads = 1;
  bool replace = false;
  bool restart = false;                      // do not go on with an interrupted build
  int64_t commit_bytes = int64_t{64} << 20;  // of text, after which the work done is made safe
};

struct BuildProgress {
  enum class Phase { kTrainTokenizer, kEncode };
  Phase phase = Phase::kEncode;
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t text_bytes = 0;
  int64_t input_bytes = 0;  // of files, consumed
  int64_t total_bytes = 0;  // of files
};

struct BuiltCorpus {
  std::string prefix;
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t text_bytes = 0;
};

struct BuildResult {
  std::vector<BuiltCorpus> corpora;  // one, or train and validation
  std::string tokenizer_path;        // beside the shards
  int64_t vocab_size = 0;
  int64_t files = 0;
  int64_t skipped_files = 0;
  int64_t skipped_lines = 0;
  bool resumed = false;
};

struct BuildObserver {
  Notice notice;
  std::function<void(const BuildProgress&)> progress;
};

/// The shards depend on inputs, tokenizer and validation fraction alone, not on threads,
/// interruptions or commits. A build that was interrupted goes on where its last commit was, if
/// inputs and options are the same. Errors are one line, with file and remedy.
absl::StatusOr<BuildResult> Build(const BuildOptions& options, const BuildObserver& observer);

}  // namespace ela::data
