#include "data/corpus/inspect.h"

#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "data/shards/checksums.h"
#include "data/shards/mapped_file.h"
#include "data/shards/shard_reader.h"
#include "data/tokenizer.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

// Ids in range, and documents that end as they should.
void CheckTokens(const ShardReader& shard, VerifyResult* result) {
  constexpr int64_t kStep = int64_t{1} << 20;
  std::vector<int32_t> ids(kStep);
  const int64_t vocab_size = shard.sidecar().has_value() ? shard.sidecar()->vocab_size : 0;
  for (int64_t begin = 0; begin < shard.tokens(); begin += kStep) {
    const int64_t count = std::min(kStep, shard.tokens() - begin);
    const absl::Status status = shard.Read(begin, count, vocab_size, ids.data());
    if (status.ok()) continue;
    result->problems.emplace_back(status.message());
    return;
  }
  if (!shard.sidecar().has_value() || shard.sidecar()->end_of_document < 0) return;
  for (int64_t d = 0; d < shard.documents(); ++d) {
    const int64_t end = shard.DocumentBegin(d + 1);
    if (end == shard.DocumentBegin(d)) continue;
    int32_t last = 0;
    if (shard.Read(end - 1, 1, 0, &last).ok() && last == shard.sidecar()->end_of_document) continue;
    result->problems.push_back(absl::StrCat(shard.bin_path(), ": document ", d, " ends with id ",
                                            last, ", not with the end-of-document id ",
                                            shard.sidecar()->end_of_document));
    return;
  }
}

}  // namespace

std::string TokenizerBeside(const std::string& prefix) {
  const std::string stem(absl::StripSuffix(absl::StripSuffix(prefix, ".train"), ".validation"));
  for (const std::string& base : {prefix, stem}) {
    for (const char* suffix : {".model", ".tokenizer.json"}) {
      const std::string path = absl::StrCat(base, suffix);
      if (access(path.c_str(), R_OK) == 0) return path;
    }
  }
  return "";
}

absl::StatusOr<CorpusInfo> Inspect(const std::string& prefix) {
  ELA_ASSIGN_OR_RETURN(const auto shard, ShardReader::Open(prefix));
  CorpusInfo info;
  info.prefix = prefix;
  info.token_type = TypeName(shard->type());
  info.documents = shard->documents();
  info.tokens = shard->tokens();
  info.bin_bytes = shard->bin().size();
  info.idx_bytes = shard->idx().size();
  std::vector<int64_t> lengths;
  lengths.reserve(static_cast<size_t>(info.documents));
  for (int64_t d = 0; d < info.documents; ++d) {
    lengths.push_back(shard->DocumentBegin(d + 1) - shard->DocumentBegin(d));
  }
  if (!lengths.empty()) {
    const auto middle = lengths.begin() + static_cast<int64_t>(lengths.size() / 2);
    std::nth_element(lengths.begin(), middle, lengths.end());
    info.median = *middle;
    info.shortest = *std::min_element(lengths.begin(), lengths.end());
    info.longest = *std::max_element(lengths.begin(), lengths.end());
  }
  if (shard->sidecar().has_value()) {
    const Sidecar& sidecar = *shard->sidecar();
    info.has_sidecar = true;
    info.text_bytes = sidecar.text_bytes;
    info.vocab_size = sidecar.vocab_size;
    info.end_of_document = sidecar.end_of_document;
    info.tokenizer_hash = sidecar.tokenizer_hash;
    const std::string path = TokenizerBeside(prefix);
    const auto file = MappedFile::Open(path);
    if (file.ok() && HexHash(file->view()) == info.tokenizer_hash) info.tokenizer_path = path;
  }
  return info;
}

absl::StatusOr<std::string> DocumentText(const std::string& prefix, int64_t document,
                                         const std::string& tokenizer_path) {
  ELA_ASSIGN_OR_RETURN(const auto shard, ShardReader::Open(prefix));
  const std::string path = tokenizer_path.empty() ? TokenizerBeside(prefix) : tokenizer_path;
  if (path.empty()) {
    return absl::NotFoundError(
        absl::StrCat(prefix, ": no tokenizer lies beside it; pass --tokenizer PATH"));
  }
  ELA_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(path));
  if (document < 0 || document >= shard->documents()) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, ": document ", document, " of 0 to ", shard->documents() - 1));
  }
  const int64_t begin = shard->DocumentBegin(document);
  std::vector<int32_t> ids(static_cast<size_t>(shard->DocumentBegin(document + 1) - begin));
  ELA_RETURN_IF_ERROR(
      shard->Read(begin, static_cast<int64_t>(ids.size()), tokenizer->vocab_size(), ids.data()));
  return tokenizer->Decode(ids);
}

absl::StatusOr<VerifyResult> Verify(const std::string& prefix) {
  ELA_ASSIGN_OR_RETURN(const auto shard, ShardReader::Open(prefix));
  VerifyResult result;
  const absl::Status index = shard->CheckIndex();
  if (!index.ok()) result.problems.emplace_back(index.message());
  if (shard->sidecar().has_value()) {
    result.checksums = true;
    for (std::string& damaged : DamagedBlocks(*shard))
      result.problems.push_back(std::move(damaged));
    result.checked_bytes += shard->idx().size() + shard->bin().size();
  }
  if (result.problems.empty()) CheckTokens(*shard, &result);
  const std::string path = TokenizerBeside(prefix);
  if (!path.empty() && result.checksums) {
    const auto file = MappedFile::Open(path);
    if (!file.ok() || HexHash(file->view()) != shard->sidecar()->tokenizer_hash) {
      result.problems.push_back(
          absl::StrCat(path, ": not the tokenizer that the shards were built with"));
    }
  }
  return result;
}

}  // namespace ela::data
