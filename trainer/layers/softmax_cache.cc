// Decoding with softmax attention: a cache of keys and values that grows by a token at a time.
#include <algorithm>
#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/layers/softmax_mixer.h"

namespace ela::trainer {

using kernels::SizeOf;
using kernels::Tensor;

namespace {

/// Keys or values of B sequences, with room for C tokens of each.
struct TokenMemory {
  TokenMemory(const LayerContext& layer, int64_t sequences, int64_t room, int64_t heads, int64_t d)
      : memory(static_cast<size_t>(sequences * room * heads * d) * SizeOf(layer.element),
               layer.ctx.backend),
        rows(memory.data(), layer.element, {sequences, room, heads, d}) {}
  /// Of one sequence, [end - begin, H, D].
  Tensor Rows(int64_t sequence, int64_t begin, int64_t end) const {
    const int64_t first = sequence * rows.dim(1);
    return rows.View({rows.dim(0) * rows.dim(1), rows.dim(2), rows.dim(3)})
        .Rows(first + begin, first + end);
  }

  kernels::BackendMemory memory;
  Tensor rows;  // [B, C, H, D]
};

struct KeyValueCache : MixerCache {
  KeyValueCache(const LayerContext& layer, int64_t sequences, int64_t room, int64_t heads,
                int64_t d)
      : k(layer, sequences, room, heads, d), v(layer, sequences, room, heads, d) {}
  int64_t sequences() const { return k.rows.dim(0); }
  int64_t room() const { return k.rows.dim(1); }
  int64_t heads() const { return k.rows.dim(2); }
  int64_t head_dim() const { return k.rows.dim(3); }

  void Reserve(const LayerContext& layer, int64_t tokens) override {
    if (tokens <= room()) return;
    KeyValueCache larger(layer, sequences(), tokens, heads(), head_dim());
    for (int64_t b = 0; b < sequences(); ++b) larger.TakeRows(layer, b, *this, b);
    // What reads the old memory is done before it is given back.
    if (layer.ctx.device != nullptr) layer.ctx.device->Synchronize();
    std::swap(k, larger.k);
    std::swap(v, larger.v);
  }
  std::unique_ptr<MixerCache> Repeated(const LayerContext& layer,
                                       int64_t sequences) const override {
    auto all = std::make_unique<KeyValueCache>(layer, sequences, room(), heads(), head_dim());
    for (int64_t b = 0; b < sequences; ++b) all->TakeRows(layer, b, *this, 0);
    return all;
  }
  void TakeRows(const LayerContext& layer, int64_t to, const KeyValueCache& other, int64_t from) {
    const int64_t tokens = other.room();
    kernels::Copy(layer.ctx, k.Rows(to, 0, tokens), other.k.Rows(from, 0, tokens));
    kernels::Copy(layer.ctx, v.Rows(to, 0, tokens), other.v.Rows(from, 0, tokens));
  }

  TokenMemory k, v;
};

}  // namespace

int64_t SoftmaxMixer::CacheBytes(const LayerContext& layer, int64_t sequences,
                                 int64_t tokens) const {
  return 2 * sequences * tokens * config_.num_heads * config_.head_dim *
         static_cast<int64_t>(SizeOf(layer.element));
}

std::unique_ptr<MixerCache> SoftmaxMixer::NewCache(const LayerContext& layer, int64_t sequences) {
  return std::make_unique<KeyValueCache>(layer, sequences, /*room=*/0, config_.num_heads,
                                         config_.head_dim);
}

absl::Status SoftmaxMixer::FillCache(const LayerContext& layer, const Qkv& in,
                                     const TokenRows& rows, MixerCache* cache) {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  auto* kv = static_cast<KeyValueCache*>(cache);
  const int shards = sequence_ == nullptr ? 1 : sequence_->size();
  const int own = sequence_ == nullptr ? 0 : sequence_->rank();
  const size_t row_bytes = BytesOf(layer, false).keys;
  const auto rows_of = [&](int shard) {
    return sequence_ == nullptr ? rows.count() : rows.ShardRows(shard);
  };
  const auto bytes_of = [&](int shard) { return static_cast<size_t>(rows_of(shard)) * row_bytes; };
  std::vector<size_t> sent(static_cast<size_t>(shards)), received(static_cast<size_t>(shards));
  sent.back() = bytes_of(own);
  char* mine = static_cast<char*>(layer.ctx.scratch->Take(sent.back()));
  char* all = mine;
  const Keys packed = KeysAt(layer, mine, rows.count());
  kernels::Copy(layer.ctx, packed.k, in.k);
  kernels::Copy(layer.ctx, packed.v, in.v);
  int64_t all_rows = rows.count();
  if (sequence_ != nullptr) {
    all_rows = 0;
    for (int j = 0; j < shards && own == shards - 1; ++j) {
      received[static_cast<size_t>(j)] = bytes_of(j);
      all_rows += rows_of(j);
    }
    all = static_cast<char*>(layer.ctx.scratch->Take(static_cast<size_t>(all_rows) * row_bytes));
    ELA_RETURN_IF_ERROR(sequence_->AllToAllV(all, received, mine, sent));
    if (own != shards - 1) return absl::OkStatus();
  }
  const int64_t sequences = std::max<int64_t>(1, rows.sequences());
  kv->Reserve(layer, all_rows / sequences);
  int64_t at = 0;
  for (int j = 0; j < shards; ++j) {
    const Keys keys = KeysAt(layer, all, rows_of(j));
    const int64_t length = rows_of(j) / sequences;
    for (int64_t b = 0; b < rows.sequences(); ++b) {
      const int64_t begin = b * length, end = begin + length;
      kernels::Copy(layer.ctx, kv->k.Rows(b, at, at + length), keys.k.Rows(begin, end));
      kernels::Copy(layer.ctx, kv->v.Rows(b, at, at + length), keys.v.Rows(begin, end));
    }
    at += length;
    all += bytes_of(j);
  }
  return absl::OkStatus();
}

void SoftmaxMixer::Decode(const LayerContext& layer, Tensor y, const Qkv& in, Tensor positions,
                          MixerCache* cache) {
  const auto* kv = static_cast<KeyValueCache*>(cache);
  kernels::SoftmaxAttentionDecode(layer.ctx, y, kv->k.rows, kv->v.rows, in.q, in.k, in.v, positions,
                                  config_);
}

}  // namespace ela::trainer
