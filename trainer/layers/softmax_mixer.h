// Softmax attention between projections, for the hybrid layers (model.md 1.6), across the shards of
// the sequence: keys and values of all shards are gathered, and each rank folds the blocks it may
// see into its queries in rank order (online softmax), so T x L scores never exist.
//
//   backward: keys and values are gathered again (behind the layer's other work) rather than kept;
//             each rank makes its part of every block's dk, dv, and the owner adds the parts in
//             rank order.
//
// Saved: lse [T, H]. Scratch: 2 L B d elements for the gathered keys and values, twice that in
// backward. Ranks late in the sequence have more blocks to fold in causal passes.
#pragma once

#include <memory>
#include <vector>

#include "kernels/softmax_attention/softmax_attention.h"
#include "trainer/layers/mixer.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

class SoftmaxMixer : public Mixer {
 public:
  /// `sequence` may be null: the whole sequence is on this rank.
  SoftmaxMixer(const kernels::SoftmaxAttentionConfig& config, Communicator* sequence);

  absl::Status StartForward(const LayerContext& layer, const Qkv& in,
                            const TokenRows& rows) override;
  absl::Status FinishForward(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
                             const TokenRows& rows) override;
  absl::Status StartBackward(const LayerContext& layer, kernels::Tensor dy, kernels::Tensor y,
                             const Qkv& in, const TokenRows& rows) override;
  absl::Status FinishBackward(const LayerContext& layer, const Qkv& din, kernels::Tensor dy,
                              kernels::Tensor y, const Qkv& in, const TokenRows& rows) override;
  std::unique_ptr<MixerCache> NewCache(const LayerContext& layer, int64_t sequences) override;
  absl::Status FillCache(const LayerContext& layer, const Qkv& in, const TokenRows& rows,
                         MixerCache* cache) override;
  void Decode(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
              MixerCache* cache) override;

 private:
  /// Keys and values of one shard, and where their rows stand.
  struct Block {
    kernels::Tensor k, v;  // [T_j, H, D]
    RowPlaces places;
  };
  absl::Status StartGather(const LayerContext& layer, const Qkv& in, const TokenRows& rows);
  absl::Status WaitGather();
  Block BlockOf(int shard, const Qkv& in, const TokenRows& rows) const;
  /// Shards whose keys this rank's queries may see: [0, this].
  int VisibleShards(const TokenRows& rows) const;
  absl::Status ReturnGradients(const LayerContext& layer, const Qkv& din, kernels::Tensor parts,
                               const TokenRows& rows);

  kernels::SoftmaxAttentionConfig config_;
  Communicator* sequence_;  // null: one shard
  std::unique_ptr<Pending> pending_;
  kernels::Tensor mine_, gathered_;  // [2 max T, H, D], [P 2 max T, H, D]; scratch
  kernels::Tensor lse_;              // saved
};

}  // namespace ela::trainer
