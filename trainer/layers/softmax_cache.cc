// Decoding with softmax attention: a cache of keys and values that grows by a token at a time.
#include <algorithm>
#include <limits>

#include "kernels/ops.h"
#include "proto/status_macros.h"
#include "trainer/layers/softmax_mixer.h"

namespace ela::trainer {

using kernels::SizeOf;
using kernels::Tensor;

namespace {

struct KeyValueCache : MixerCache {
  std::vector<std::vector<char>> k, v;  // [B] rows [H D] of the tokens so far
  std::vector<int32_t> zeros;           // one document, everything is in the past
  int64_t bytes() const override {
    size_t n = 0;
    for (const auto& x : k) n += 2 * x.size();
    return static_cast<int64_t>(n);
  }
  std::unique_ptr<MixerCache> Repeated(int64_t sequences) const override {
    auto all = std::make_unique<KeyValueCache>();
    all->k.assign(static_cast<size_t>(sequences), k.front());
    all->v.assign(static_cast<size_t>(sequences), v.front());
    return all;
  }
};

/// Rows [begin, end) of x at the end of `rows`.
void Append(const Tensor& x, int64_t begin, int64_t end, std::vector<char>* rows) {
  const size_t row_bytes = static_cast<size_t>(x.row_numel()) * SizeOf(x.dtype());
  for (int64_t r = begin; r < end; ++r) {
    const char* data = static_cast<const char*>(x.Rows(r, r + 1).data());
    rows->insert(rows->end(), data, data + row_bytes);
  }
}

}  // namespace

std::unique_ptr<MixerCache> SoftmaxMixer::NewCache(const LayerContext& layer, int64_t sequences) {
  auto cache = std::make_unique<KeyValueCache>();
  cache->k.resize(static_cast<size_t>(sequences));
  cache->v.resize(static_cast<size_t>(sequences));
  return cache;
}

absl::Status SoftmaxMixer::FillCache(const LayerContext& layer, const Qkv& in,
                                     const TokenRows& rows, MixerCache* cache) {
  const kernels::ArenaScope scope(layer.ctx.scratch);
  auto* kv = static_cast<KeyValueCache*>(cache);
  const int shards = sequence_ == nullptr ? 1 : sequence_->size();
  const int own = sequence_ == nullptr ? 0 : sequence_->rank();
  const size_t row_bytes = BytesOf(layer, false).keys;
  const auto bytes_of = [&](int shard) {
    return static_cast<size_t>(sequence_ == nullptr ? rows.count() : rows.ShardRows(shard)) *
           row_bytes;
  };
  std::vector<size_t> sent(static_cast<size_t>(shards)), received(static_cast<size_t>(shards));
  sent.back() = bytes_of(own);
  char* mine = static_cast<char*>(layer.ctx.scratch->Take(sent.back()));
  char* all = mine;
  const Keys packed = KeysAt(layer, mine, rows.count());
  kernels::Copy(layer.ctx, packed.k, in.k);
  kernels::Copy(layer.ctx, packed.v, in.v);
  if (sequence_ != nullptr) {
    size_t bytes = 0;
    for (int j = 0; j < shards && own == shards - 1; ++j) {
      received[static_cast<size_t>(j)] = bytes_of(j);
      bytes += bytes_of(j);
    }
    all = static_cast<char*>(layer.ctx.scratch->Take(bytes));
    ELA_RETURN_IF_ERROR(sequence_->AllToAllV(all, received, mine, sent));
    if (own != shards - 1) return absl::OkStatus();
  }
  for (int j = 0; j < shards; ++j) {
    const int64_t shard_rows = static_cast<int64_t>(bytes_of(j) / row_bytes);
    const Keys keys = KeysAt(layer, all, shard_rows);
    const int64_t length = shard_rows / std::max<int64_t>(1, rows.sequences());
    for (int64_t b = 0; b < rows.sequences(); ++b) {
      Append(keys.k, b * length, (b + 1) * length, &kv->k[static_cast<size_t>(b)]);
      Append(keys.v, b * length, (b + 1) * length, &kv->v[static_cast<size_t>(b)]);
    }
    all += bytes_of(j);
  }
  return absl::OkStatus();
}

void SoftmaxMixer::Decode(const LayerContext& layer, Tensor y, const Qkv& in, MixerCache* cache) {
  auto* kv = static_cast<KeyValueCache*>(cache);
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t h = in.k.dim(1), d = in.k.dim(2);
  const size_t row_bytes = static_cast<size_t>(h * d) * SizeOf(in.k.dtype());
  const Tensor lse = layer.ScratchStatistic({in.q.dim(0), config_.num_heads});
  kernels::Fill(ctx, y, 0);
  kernels::Fill(ctx, lse, -std::numeric_limits<double>::infinity());
  for (int64_t b = 0; b < in.q.dim(0); ++b) {
    std::vector<char>&k = kv->k[static_cast<size_t>(b)], &v = kv->v[static_cast<size_t>(b)];
    Append(in.k, b, b + 1, &k);
    Append(in.v, b, b + 1, &v);
    const int64_t seen = static_cast<int64_t>(k.size() / row_bytes);
    if (static_cast<int64_t>(kv->zeros.size()) < seen) {
      kv->zeros.resize(static_cast<size_t>(2 * seen));
    }
    const Tensor zeros = Tensor::Of(kv->zeros.data(), {seen});
    kernels::SoftmaxAttentionForward(ctx, y.Rows(b, b + 1), lse.Rows(b, b + 1), in.q.Rows(b, b + 1),
                                     Tensor(k.data(), in.k.dtype(), {seen, h, d}),
                                     Tensor(v.data(), in.v.dtype(), {seen, h, d}), zeros.Rows(0, 1),
                                     zeros, zeros.Rows(0, 1), zeros, config_);
  }
}

}  // namespace ela::trainer
