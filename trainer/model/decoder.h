// The decoder: embedding -> N layers -> final norm -> logits and loss, fused (model.md 2, 3). One
// micro-batch at a time: Forward, then Backward (or Loss, or Logprobs) of the same rows.
//
//   loss = scale * sum over valid targets of -log p(target)  +  balance loss (through dprobs)
//
// Saved: (N + 1) T d elements for the layers' inputs, what each layer saves until it has run
// backward, and the final norm's output. The first `recompute_layers` layers save nothing: they run
// forward again before they run backward, and the bits are the same. Parameters: embed.weight (also
// the output), final_norm.weight.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "ela/v1/job.pb.h"
#include "trainer/layers/residual_layer.h"
#include "trainer/optim/parameter_store.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

/// Routing of the rows of one rank or, once summed, of a whole batch.
struct RoutingStatistics {
  int64_t layers = 0, experts = 0;
  std::vector<int64_t> counts;    // [N, E] tokens that chose each expert
  std::vector<double> prob_sums;  // [N, E] sums of the router's probabilities

  RoutingStatistics(int64_t num_layers, int64_t num_experts);
  void Add(const RoutingStatistics& other);
};

/// Told where a pass is, in parts of the model (job::ParameterInfo::part). An error ends the pass.
using AtPart = std::function<absl::Status(int64_t part)>;

struct DecoderOptions {
  int64_t recompute_layers = 0;
  bool causal = true;  // false: the masked_token objective
  AtPart before_part;  // a forward pass comes to it: its parameters must be there. May be empty
};

class Decoder {
 public:
  /// `store` and `mesh` must outlive it; mesh null: one rank.
  Decoder(const v1::ModelSpec& model, const ParameterStore* store, const Mesh* mesh,
          const DecoderOptions& options);

  /// Through the final norm. `routing` (may be null) is added to.
  absl::Status Forward(const LayerContext& layer, const TokenRows& rows,
                       RoutingStatistics* routing);
  /// After Forward: *loss_sum += sum over the valid targets; the gradients of scale x that sum and
  /// of the balance loss are added to the store's. `dprobs` [N, E] (empty: none): the balance
  /// loss's gradient in the probabilities of every token. `after_layer` (may be empty): the pass
  /// adds to no gradient of this part or of those above it any more; not called for the embedding,
  /// which is the end of the pass.
  absl::Status Backward(const LayerContext& context, const TokenRows& rows, double scale,
                        kernels::Tensor dprobs, double* loss_sum, const AtPart& after_layer = {});
  /// After Forward, without gradients.
  void Loss(const LayerContext& layer, const TokenRows& rows, double* loss_sum) const;
  /// After Forward: logprob [T] of each target, 0 where there is none.
  void Logprobs(const LayerContext& layer, const TokenRows& rows, kernels::Tensor logprob) const;
  /// Gives back what Forward saved. Backward does it too.
  void Forget(const LayerContext& layer);

  /// Decoding: what B sequences carry from token to token (room for tokens: LayerCache::Reserve).
  std::vector<LayerCache> NewCache(const LayerContext& layer, int64_t sequences) const;
  /// After Forward of `rows`, one document a sequence and not recomputing: *cache has seen them,
  /// and logits [B, V] follow the last token of each. Collective over the sequence shards, of which
  /// only the last one's cache and logits are whole and may be decoded from.
  absl::Status FillCache(const LayerContext& layer, const TokenRows& rows, kernels::Tensor logits,
                         std::vector<LayerCache>* cache) const;
  /// logits [B, V] (float or the activations' type) after one token of each sequence: ids [B],
  /// positions [B] (the tokens that each has seen; the caches have room for more). All in the
  /// memory of the back end. The work is the same for every token: a CudaGraph can repeat it.
  void Decode(const LayerContext& layer, kernels::Tensor logits, kernels::Tensor ids,
              kernels::Tensor positions, std::vector<LayerCache>* cache);

  /// Slow-path chunks of each layer's attention and lobe since the last call, forward and backward.
  std::vector<int64_t> TakeSlowPathChunks();

  /// The final norm's output [T, d] of the last Forward.
  kernels::Tensor features() const { return features_; }
  const ResidualLayer& layer(int64_t i) const { return *layers_[static_cast<size_t>(i)]; }

 private:
  absl::Status BeforePart(int64_t part) const;
  bool Recomputes(size_t i) const { return static_cast<int64_t>(i) < options_.recompute_layers; }
  absl::Status RunLayers(const LayerContext& context, const TokenRows& rows,
                         RoutingStatistics* routing);

  v1::ModelSpec model_;
  DecoderOptions options_;
  Parameter embed_, final_norm_;  // final_norm_ empty: none
  std::vector<std::unique_ptr<ResidualLayer>> layers_;
  std::vector<kernels::Tensor> inputs_;  // [N + 1] saved: inputs of the layers, last: their output
  kernels::Tensor features_, final_rstd_, positions_;  // saved
  std::vector<int64_t> slow_path_;                     // [N]
  std::vector<size_t> marks_;                          // [N] before what each layer saves
  bool holds_ = false;
  size_t mark_ = 0;
};

}  // namespace ela::trainer
