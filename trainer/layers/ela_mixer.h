// Exact linear attention between projections, across the shards of the sequence (model.md 1,
// parallelism.md 1 and 2).
//
//   forward   state of the last span (bidirectional: also of the first) -> all-gather -> fold of
//   the
//             ranks that share the document -> y
//   backward  gradient state of the first span (bidirectional: also of the last) -> all-gather ->
//             fold -> dq, dk, dv
//
// Saved: lse [T, H] and the folded states [B, S] (one; bidirectional: two), floats: 4 (T H + B S)
// bytes; on a device the states of the segments that it cuts long sequences into. The exchange is
// issued whatever the documents are, so no collective depends on data.
#pragma once

#include <memory>
#include <vector>

#include "kernels/ela/ela.h"
#include "trainer/layers/mixer.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

class ElaMixer : public Mixer {
 public:
  /// `sequence` may be null: the whole sequence is on this rank.
  ElaMixer(kernels::ElaConfig config, Communicator* sequence);

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
  absl::Status FillCache(const LayerContext& layer, const Qkv& in, const TokenRows& rows,
                         MixerCache* cache) override;
  void Decode(const LayerContext& layer, kernels::Tensor y, const Qkv& in,
              kernels::Tensor positions, MixerCache* cache) override;

 private:
  /// Takes `mine_` and `gathered_` for the edges that a pass exports.
  void TakeExchange(const LayerContext& layer, int64_t sequences);
  kernels::Tensor Edge(kernels::SpanEdge edge, kernels::SpanEdge only, int64_t sequences) const;

  kernels::ElaConfig config_;
  Communicator* sequence_;  // null: nothing to exchange
  StateExchange exchange_;
  kernels::Tensor mine_, gathered_;                  // [edges B, S], [P, edges B, S]; scratch
  kernels::Tensor lse_, before_, after_, segments_;  // saved
};

}  // namespace ela::trainer
