// Softmax attention between projections, for the hybrid layers (model.md 1.6). Across the shards of
// the sequence keys and queries travel a ring on which every rank does the same work
// (ring_schedule.h), and results merge by their log-sum-exp, so T x L scores never exist and no
// rank ever holds more than two other shards.
//
//   forward   a rank that computes for another's queries sends back their partial y and lse
//   backward  keys and values travel again rather than being kept; gradients of what came are sent
//             back to its owner, in float, and added there in the order of the steps
//
// Saved: lse [T, H]. Scratch, w = H D, on P > 1 shards: what is sent, 3 T w elements (backward 4 T
// w and 2 T H floats); two buffers (P < 4, causal: one) of 2 T w elements received (backward 2 T H
// floats more), and of T (w + H) floats (backward 2 T w) of results each way; where elements aren't
// float, T w (backward 3 T w) floats of sums.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/softmax_attention/softmax_attention.h"
#include "trainer/layers/mixer.h"
#include "trainer/layers/ring_exchange.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

class SoftmaxMixer : public Mixer {
 public:
  /// `sequence` may be null: the whole sequence is on this rank.
  SoftmaxMixer(const kernels::SoftmaxAttentionConfig& config, Communicator* sequence);

  bool exchanges() const override { return sequence_ != nullptr; }
  absl::Status StartForward(const LayerContext& layer, const Qkv& in,
                            const TokenRows& rows) override;
  absl::Status FinishForward(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
                             const TokenRows& rows) override;
  absl::Status StartBackward(const LayerContext& layer, kernels::Tensor dy, kernels::Tensor y,
                             const Qkv& in, const TokenRows& rows) override;
  absl::Status FinishBackward(const LayerContext& layer, const Qkv& din, kernels::Tensor dy,
                              kernels::Tensor y, const Qkv& in, const TokenRows& rows) override;
  int64_t CacheBytes(const LayerContext& layer, int64_t sequences, int64_t tokens) const override;
  std::unique_ptr<MixerCache> NewCache(const LayerContext& layer, int64_t sequences) override;
  /// The keys and values of all shards go to the last one.
  absl::Status FillCache(const LayerContext& layer, const Qkv& in, const TokenRows& rows,
                         MixerCache* cache) override;
  void Decode(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
              kernels::Tensor positions, MixerCache* cache) override;

 private:
  /// Rows of queries, or of keys, and where they stand.
  struct Queries {
    kernels::Tensor q, dy, lse, delta;  // forward: q alone
    RowPlaces places;
  };
  struct Keys {
    kernels::Tensor k, v;
    RowPlaces places;
  };
  struct PlaceTensors {
    kernels::Tensor q_document, k_document, q_position, k_position;
  };
  static PlaceTensors PlacesOf(const LayerContext& layer, const Queries& queries, const Keys& keys,
                               int64_t begin, int64_t end);
  /// `memory` as the tensors of a message about `rows` rows.
  Keys KeysAt(const LayerContext& layer, char* memory, int64_t rows) const;
  Queries QueriesAt(const LayerContext& layer, char* memory, int64_t rows, bool backward) const;
  RingBytes BytesOf(const LayerContext& layer, bool backward) const;
  void PackKeys(const LayerContext& layer, const Qkv& in);
  void PackQueries(const LayerContext& layer, const Queries& queries, bool backward);

  /// Folds queries [begin, end) over `keys` into rows [begin, end) of y and lse.
  void Fold(const LayerContext& layer, kernels::Tensor y, kernels::Tensor lse,
            const Queries& queries, const Keys& keys, int64_t begin, int64_t end) const;
  /// Adds their gradients; dq has the rows [begin, end).
  void AddGradients(const LayerContext& layer, kernels::Tensor dq, kernels::Tensor dk,
                    kernels::Tensor dv, const Queries& queries, const Keys& keys, int64_t begin,
                    int64_t end) const;
  absl::Status ForwardStep(const LayerContext& layer, int t, kernels::Tensor y,
                           const Queries& own_queries, const Keys& own_keys, const TokenRows& rows);
  absl::Status BackwardStep(const LayerContext& layer, int t, const Qkv& sums,
                            const Queries& own_queries, const Keys& own_keys,
                            const TokenRows& rows);
  absl::Status MergeReply(const LayerContext& layer, int t, kernels::Tensor y);
  absl::Status AddReply(const LayerContext& layer, int t, const Qkv& sums);

  kernels::SoftmaxAttentionConfig config_;
  Communicator* sequence_;  // null: one shard
  // Of the pass under way, in scratch: the ring, and what this rank sends around it.
  std::optional<RingExchange> ring_;
  char *sent_keys_ = nullptr, *sent_queries_ = nullptr;
  kernels::Tensor delta_;  // [T, H], backward
  kernels::Tensor lse_;    // saved
};

}  // namespace ela::trainer
