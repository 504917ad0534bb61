#include "trainer/loop/batch_stream.h"

#include <algorithm>
#include <utility>

#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool IsMasked(uint64_t seed, int64_t step, int64_t sample, int64_t position) {
  uint64_t h = Mix(seed ^ 0x6d61736b5f746f6bu);
  for (int64_t part : {step, sample, position}) h = Mix(h ^ static_cast<uint64_t>(part));
  return static_cast<double>(h >> 11) * 0x1p-53 < kMaskedShare;
}

}  // namespace

void MaskTokens(uint64_t seed, int64_t step, int64_t first_sample, int64_t token_begin,
                data::Batch* batch) {
  batch->valid_targets = 0;
  for (int64_t b = 0; b < batch->sequences; ++b) {
    for (int64_t i = 0; i < batch->length; ++i) {
      const size_t at = static_cast<size_t>(b * batch->length + i);
      const bool masked = IsMasked(seed, step, first_sample + b, token_begin + i);
      batch->targets[at] = masked ? batch->ids[at] : -1;
      if (masked) batch->ids[at] = kMaskId;
      batch->valid_targets += masked;
    }
  }
}

BatchStream::BatchStream(const data::Loader* loader, const v1::JobSpec& spec,
                         const MeshSizes& sizes, int data_index, int sequence_index,
                         uint64_t mask_seed)
    : loader_(loader),
      sizes_(sizes),
      data_index_(data_index),
      sequence_index_(sequence_index),
      seq_len_(spec.data().seq_len()),
      replica_sequences_(spec.training().global_batch_size() / sizes.data),
      micro_sequences_(spec.training().micro_batch_size() > 0
                           ? std::min(spec.training().micro_batch_size(), replica_sequences_)
                           : replica_sequences_),
      mask_seed_(mask_seed),
      masked_(spec.training().objective() == v1::OBJECTIVE_MASKED_TOKEN) {}

absl::Status BatchStream::Fill(int64_t step, int64_t first_sample, StepBatch* out) const {
  const int64_t begin = ShardBegin(seq_len_, sequence_index_, sizes_.sequence);
  const int64_t end = ShardBegin(seq_len_, sequence_index_ + 1, sizes_.sequence);
  const int64_t first = first_sample + data_index_ * replica_sequences_;
  out->micro.clear();
  out->valid_targets = 0;
  for (int64_t at = 0; at < replica_sequences_; at += micro_sequences_) {
    const int64_t sequences = std::min(micro_sequences_, replica_sequences_ - at);
    data::Batch batch;
    ELA_RETURN_IF_ERROR(loader_->Fill(first + at, sequences, begin, end, &batch));
    if (masked_) MaskTokens(mask_seed_, step, first + at, begin, &batch);
    out->valid_targets += batch.valid_targets;
    out->micro.emplace_back(std::move(batch), seq_len_, sequence_index_, sizes_.sequence);
  }
  return absl::OkStatus();
}

}  // namespace ela::trainer
