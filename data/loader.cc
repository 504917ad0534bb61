#include "data/loader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/sampler/mixture.h"
#include "data/sampler/permutation.h"
#include "data/shards/shard_reader.h"
#include "data/vocabulary.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr uint64_t kWindowOrderKey = 0x77696e646f77;  // tells this use of the seed from the others

struct MappedSource {
  std::unique_ptr<ShardReader> shard;
  int64_t windows = 0;
};

struct Window {
  const ShardReader* shard = nullptr;
  int64_t begin = 0;  // first token
};

class ShardLoader final : public Loader {
 public:
  ShardLoader(const LoaderOptions& options, std::vector<MappedSource> sources, Mixture mixture)
      : options_(options), sources_(std::move(sources)), mixture_(std::move(mixture)) {
    std::string parts = absl::StrCat("ela.loader/v1:", options_.seed, ":", options_.seq_len, ":",
                                     options_.document_mask, ":", options_.shuffle);
    for (size_t s = 0; s < sources_.size(); ++s) {
      samples_per_epoch_ += sources_[s].windows;
      absl::StrAppend(&parts, ":", sources_[s].shard->Fingerprint(), "*", mixture_.shares()[s]);
    }
    fingerprint_ = HexHash(parts);
  }

  absl::Status Fill(int64_t first_sample, int64_t sequences, int64_t token_begin, int64_t token_end,
                    Batch* batch) const override;
  int64_t samples_per_epoch() const override { return samples_per_epoch_; }
  const std::string& fingerprint() const override { return fingerprint_; }

 private:
  Window WindowOf(int64_t sample) const;
  void FindDocumentStarts(const Window& window, std::vector<int64_t>* starts) const;
  absl::Status FillRow(const Window& window, int64_t token_begin, int64_t row, Batch* batch) const;

  LoaderOptions options_;
  std::vector<MappedSource> sources_;
  Mixture mixture_;
  int64_t samples_per_epoch_ = 0;
  std::string fingerprint_;
};

Window ShardLoader::WindowOf(int64_t sample) const {
  if (!options_.shuffle) {  // the sources one after the other, then again
    int64_t index = sample % samples_per_epoch_;
    size_t s = 0;
    while (index >= sources_[s].windows) index -= sources_[s++].windows;
    return {sources_[s].shard.get(), index * options_.seq_len};
  }
  const Mixture::Draw draw = mixture_.At(sample);
  const MappedSource& source = sources_[draw.source];
  const int64_t epoch = draw.ordinal / source.windows;
  const uint64_t source_key = CombineKeys(CombineKeys(options_.seed, kWindowOrderKey), draw.source);
  const Permutation order(source.windows, CombineKeys(source_key, epoch));
  return {source.shard.get(), order(draw.ordinal % source.windows) * options_.seq_len};
}

void ShardLoader::FindDocumentStarts(const Window& window, std::vector<int64_t>* starts) const {
  starts->assign(1, 0);
  if (!options_.document_mask) return;
  const ShardReader& shard = *window.shard;
  for (int64_t d = shard.FirstDocumentAfter(window.begin); d < shard.documents(); ++d) {
    const int64_t offset = shard.DocumentBegin(d) - window.begin;
    if (offset >= options_.seq_len) break;
    if (offset > starts->back()) starts->push_back(offset);  // empty documents start nothing
  }
}

absl::Status ShardLoader::FillRow(const Window& window, int64_t token_begin, int64_t row,
                                  Batch* batch) const {
  const int64_t length = batch->length;
  if (length == 0) return absl::OkStatus();
  int32_t* ids = batch->ids.data() + row * length;
  int32_t* targets = batch->targets.data() + row * length;
  int32_t* positions = batch->positions.data() + row * length;
  const int64_t vocab_size = options_.vocab_size;
  const int64_t begin = window.begin + token_begin;
  ELA_RETURN_IF_ERROR(window.shard->Read(begin, length, vocab_size, ids));
  std::copy(ids + 1, ids + length, targets);
  ELA_RETURN_IF_ERROR(window.shard->Read(begin + length, 1, vocab_size, targets + length - 1));
  batch->valid_targets += length;

  // Segment by segment: positions count from the segment's start, and a segment that a document
  // ends has no target in its last row. The window's own end ends a document if the next token
  // starts one.
  const std::vector<int64_t>& starts = batch->document_starts[row];
  const int64_t token_end = token_begin + length;
  auto next = std::upper_bound(starts.begin(), starts.end(), token_begin);
  int64_t start = *(next - 1);
  for (int64_t t = token_begin; t < token_end;) {
    const bool last = next == starts.end();
    const int64_t end = std::min(token_end, last ? token_end : *next);
    for (int64_t i = t; i < end; ++i) {
      positions[i - token_begin] = static_cast<int32_t>(i - start);
    }
    if (!last && *next <= token_end) {
      targets[*next - 1 - token_begin] = -1;
      --batch->valid_targets;
    }
    t = end;
    if (!last) start = *next++;
  }
  if (options_.document_mask && token_end == options_.seq_len) {
    const int64_t after = window.begin + token_end;
    const ShardReader& shard = *window.shard;
    const int64_t d = shard.FirstDocumentAfter(after - 1);
    if (d < shard.documents() && shard.DocumentBegin(d) == after) {
      targets[length - 1] = -1;
      --batch->valid_targets;
    }
  }
  return absl::OkStatus();
}

absl::Status ShardLoader::Fill(int64_t first_sample, int64_t sequences, int64_t token_begin,
                               int64_t token_end, Batch* batch) const {
  if (first_sample < 0 || sequences < 0 || token_begin < 0 || token_begin > token_end ||
      token_end > options_.seq_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("samples [", first_sample, ", +", sequences, "), rows [", token_begin, ", ",
                     token_end, ") are not a slice of sequences of ", options_.seq_len));
  }
  batch->sequences = sequences;
  batch->length = token_end - token_begin;
  batch->valid_targets = 0;
  const auto size = static_cast<size_t>(sequences * batch->length);
  batch->ids.resize(size);
  batch->targets.resize(size);
  batch->positions.resize(size);
  batch->document_starts.resize(sequences);
  for (int64_t row = 0; row < sequences; ++row) {
    const Window window = WindowOf(first_sample + row);
    FindDocumentStarts(window, &batch->document_starts[row]);
    ELA_RETURN_IF_ERROR(FillRow(window, token_begin, row, batch));
  }
  return absl::OkStatus();
}

absl::StatusOr<MappedSource> OpenSource(const Source& source, const LoaderOptions& options) {
  if (!std::isfinite(source.weight) || source.weight < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.prefix, ": weight must be a number >= 0"));
  }
  ELA_ASSIGN_OR_RETURN(auto shard, ShardReader::Open(source.prefix));
  if (shard->sidecar().has_value()) {
    ELA_RETURN_IF_ERROR(
        CheckSidecar(*shard->sidecar(), source.prefix, options.vocab_size, options.tokenizer_hash));
  }
  // A window has one token more than a sample has rows: the target of its last row.
  const int64_t windows = (shard->tokens() - 1) / options.seq_len;
  if (shard->tokens() < 2) {
    return absl::InvalidArgumentError(absl::StrCat(source.prefix, ": ", shard->tokens(),
                                                   " tokens: nothing to train on; add text"));
  }
  if (windows < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.prefix, ": ", shard->tokens(), " tokens are less than one sample of seq_len ",
        options.seq_len, " + 1; add text, or set seq_len to at most ", shard->tokens() - 1));
  }
  return MappedSource{std::move(shard), windows};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Loader>> Loader::Open(const LoaderOptions& options) {
  if (options.seq_len < 1) return absl::InvalidArgumentError("seq_len must be at least 1");
  if (options.sources.empty()) return absl::InvalidArgumentError("no training data: name a prefix");
  if (options.sources.size() > 65536) return absl::InvalidArgumentError("more than 65536 sources");
  std::vector<MappedSource> sources;
  std::vector<double> weights;
  bool any_weight = false;
  for (const Source& source : options.sources) {
    ELA_ASSIGN_OR_RETURN(auto mapped, OpenSource(source, options));
    sources.push_back(std::move(mapped));
    weights.push_back(source.weight);
    any_weight |= source.weight > 0;
  }
  if (!any_weight) {
    return absl::InvalidArgumentError("every source has weight 0; give one a positive weight");
  }
  return std::make_unique<ShardLoader>(options, std::move(sources), Mixture(weights, options.seed));
}

}  // namespace ela::data
