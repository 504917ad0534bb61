#include "data/vocabulary.h"

#include "absl/strings/str_cat.h"
#include "data/shards/mapped_file.h"

namespace ela::data {

absl::Status CheckTokenizer(const Tokenizer& tokenizer, const std::string& path,
                            int64_t vocab_size) {
  if (tokenizer.vocab_size() == vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "spec.model.vocab_size is ", vocab_size, ", but the tokenizer ", path, " has ",
      tokenizer.vocab_size(),
      " pieces: set model.vocab_size to that, or name the tokenizer the model is for"));
}

absl::Status CheckSidecar(const Sidecar& sidecar, const std::string& prefix, int64_t vocab_size,
                          const std::string& tokenizer_hash) {
  if (!tokenizer_hash.empty() && !sidecar.tokenizer_hash.empty() &&
      sidecar.tokenizer_hash != tokenizer_hash) {
    return absl::InvalidArgumentError(absl::StrCat(
        prefix, ".json: built with tokenizer ", sidecar.tokenizer_hash, ", the job's is ",
        tokenizer_hash, "; name that tokenizer in the job, or rebuild the corpus"));
  }
  if (vocab_size > 0 && sidecar.vocab_size > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, ".json: built with a vocabulary of ", sidecar.vocab_size,
                     ", the model's vocab_size is ", vocab_size, "; set vocab_size to at least ",
                     sidecar.vocab_size));
  }
  return absl::OkStatus();
}

std::vector<std::string> VocabularyProblems(const v1::JobSpec& spec) {
  std::vector<std::string> problems;
  const auto add = [&problems](const absl::Status& status) {
    if (!status.ok()) problems.emplace_back(status.message());
  };
  const int64_t vocab_size = spec.model().vocab_size();
  const std::string& path = spec.tokenizer().path();
  std::string hash;
  if (!path.empty()) {
    if (const auto tokenizer = LoadTokenizer(path); tokenizer.ok()) {
      hash = (*tokenizer)->hash();
      add(CheckTokenizer(**tokenizer, path, vocab_size));
      if (!problems.empty()) return problems;
    }
  }
  std::vector<std::string> prefixes;
  for (const v1::DataSource& source : spec.data().train()) prefixes.push_back(source.path());
  if (!spec.data().validation().empty()) prefixes.push_back(spec.data().validation());
  for (const std::string& prefix : prefixes) {
    const auto file = MappedFile::Open(prefix + ".json");
    if (!file.ok()) continue;
    const auto sidecar = SidecarFromJson(file->view(), prefix + ".json");
    if (sidecar.ok()) add(CheckSidecar(*sidecar, prefix, vocab_size, hash));
  }
  return problems;
}

}  // namespace ela::data
