#include "trainer/inference/score.h"

#include <algorithm>
#include <utility>

#include "data/loader.h"
#include "kernels/device.h"
#include "proto/status_macros.h"
#include "trainer/loop/batch_stream.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {

using kernels::Tensor;

namespace {

/// The numbers of all shards' rows of one sequence of `length`, in order.
absl::StatusOr<std::vector<float>> GatherRows(const LoadedModel& model, std::vector<float> mine,
                                              int64_t length) {
  if (model.sequence() == nullptr) return mine;
  const int shards = model.shards();
  const size_t most = static_cast<size_t>((length + shards - 1) / shards);
  mine.resize(most);
  std::vector<float> padded(most * static_cast<size_t>(shards)), all;
  ELA_RETURN_IF_ERROR(
      model.sequence()->AllGather(padded.data(), mine.data(), most * sizeof(float)));
  for (int r = 0; r < shards; ++r) {
    const auto first = padded.begin() + static_cast<ptrdiff_t>(most) * r;
    all.insert(all.end(), first,
               first + (ShardBegin(length, r + 1, shards) - ShardBegin(length, r, shards)));
  }
  return all;
}

/// Opened on every rank, or on none.
absl::StatusOr<std::unique_ptr<data::Loader>> OpenShards(const LoadedModel& model,
                                                         const data::LoaderOptions& options) {
  auto loader = data::Loader::Open(options);
  if (model.sequence() != nullptr) {
    ELA_RETURN_IF_ERROR(AgreeOk(*model.sequence(), loader.status()));
  }
  return loader;
}

}  // namespace

absl::Status CheckScores(const LoadedModel& model) {
  if (!model.masked()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "the model was trained on masked tokens with bidirectional attention: it does not predict a "
      "token from those before it; ela model eval gives its loss");
}

absl::StatusOr<Score> ScoreTokens(LoadedModel* model, const std::vector<int32_t>& ids) {
  ELA_RETURN_IF_ERROR(CheckScores(*model));
  ELA_ASSIGN_OR_RETURN(const TokenRows rows, model->Rows(ids, /*closed=*/true));
  const LayerContext& layer = model->context();
  Decoder& decoder = model->decoder();
  ELA_RETURN_IF_ERROR(model->Forward(rows));
  std::vector<float> logprobs(static_cast<size_t>(rows.count()));
  {
    const kernels::ArenaScope scope(layer.ctx.scratch);
    const Tensor logprob = layer.ScratchStatistic({rows.count()});
    decoder.Logprobs(layer, rows, logprob);
    kernels::CopyOut(layer.ctx, logprobs.data(), logprob);
  }
  decoder.Forget(layer);
  const int64_t length = static_cast<int64_t>(ids.size()) - 1;
  ELA_ASSIGN_OR_RETURN(logprobs, GatherRows(*model, std::move(logprobs), length));
  Score score;
  score.logprobs.assign(logprobs.begin(), logprobs.end());
  for (double logprob : score.logprobs) score.loss -= logprob;
  score.loss /= static_cast<double>(score.logprobs.size());
  return score;
}

absl::StatusOr<HeldOutLoss> EvaluateShards(
    LoadedModel* model, const std::string& prefix, int64_t seq_len, int64_t max_sequences,
    const std::function<void(int64_t done, int64_t all)>& progress) {
  constexpr int64_t kTokensAtOnce = 4096;
  data::LoaderOptions options;
  options.sources = {{prefix, 1}};
  options.seq_len = seq_len;
  options.shuffle = false;
  options.document_mask = model->document_mask();
  options.vocab_size = model->spec().vocab_size();
  if (const auto tokenizer = model->tokenizer(); tokenizer.ok()) {
    options.tokenizer_hash = (*tokenizer)->hash();
  }
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<data::Loader> loader, OpenShards(*model, options));
  int64_t all = loader->samples_per_epoch();
  if (max_sequences > 0) all = std::min(all, max_sequences);
  const int64_t at_once = std::max<int64_t>(1, kTokensAtOnce / seq_len);
  const int shard = model->shard(), shards = model->shards();
  const int64_t begin = ShardBegin(seq_len, shard, shards);
  const int64_t end = ShardBegin(seq_len, shard + 1, shards);
  HeldOutLoss out;
  while (out.sequences < all) {
    const int64_t count = std::min(at_once, all - out.sequences);
    data::Batch batch;
    ELA_RETURN_IF_ERROR(loader->Fill(out.sequences, count, begin, end, &batch));
    if (model->masked()) MaskTokens(kEvalMaskSeed, /*step=*/0, out.sequences, begin, &batch);
    const TokenRows rows(std::move(batch), seq_len, shard, shards);
    ELA_RETURN_IF_ERROR(model->Forward(rows));
    model->decoder().Loss(model->context(), rows, &out.loss);
    model->decoder().Forget(model->context());
    out.tokens += rows.valid_targets();
    out.sequences += count;
    if (progress != nullptr) progress(out.sequences, all);
  }
  if (model->sequence() != nullptr) {
    ELA_RETURN_IF_ERROR(AllReduceSum(*model->sequence(), &out.loss, 1));
    ELA_RETURN_IF_ERROR(AllReduceSum(*model->sequence(), &out.tokens, 1));
  }
  if (out.tokens > 0) out.loss /= static_cast<double>(out.tokens);
  return out;
}

}  // namespace ela::trainer
