// Whether a model's vocabulary fits its tokenizer and its shards: asked by every rank, and before a
// job is submitted as far as its files are there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "data/shards/sidecar.h"
#include "data/tokenizer.h"
#include "ela/v1/job.pb.h"

namespace ela::data {

/// InvalidArgument if `tokenizer`, of file `path`, has more or fewer pieces than the model.
absl::Status CheckTokenizer(const Tokenizer& tokenizer, const std::string& path,
                            int64_t vocab_size);
/// InvalidArgument if the shards `prefix` were built by another tokenizer than that of the hash
/// (empty: unchecked) or for more pieces than the model has (0: unchecked).
absl::Status CheckSidecar(const Sidecar& sidecar, const std::string& prefix, int64_t vocab_size,
                          const std::string& tokenizer_hash);

/// What the files of a resolved job say against it. Those that are not here, or damaged, say
/// nothing: the ranks will tell.
std::vector<std::string> VocabularyProblems(const v1::JobSpec& spec);

}  // namespace ela::data
