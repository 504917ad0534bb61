// Mixture of experts with label vectors (model.md 2.1), dropless over the ranks of the expert group
// (parallelism.md 7 and 8).
//
//   s = softmax(x W_g^T + b_g), the K largest with weights w;  expert e: f = W2_e (silu(g) u),
//   [g, u] = W1_e x;  out = sum over the K of  w f | w (f + B_e) | w f + B_e,  B_e = row e of W_g
//
//   forward   router -> sort slots by expert -> rows to their owners -> grouped products, label
//             vectors -> rows back -> combine
//   backward  the same way back. B_e's gradient is made at the owner and added to row e of W_g's
//             gradient there; the router's path is added on every token's own rank. W_g is a dense
//             parameter, so the one sum over the world counts each path exactly once.
//
// One expert without label vectors is a dense network and pays no routing: its weight is 1 and no
// gradient reaches the router.
//
// Saved, with R routed rows here (T K without expert parallelism): x's rows, gate and value,
// hidden, f: R (2d + 3F) elements; probabilities [T, E], weights [T, K] and [R] floats; 3 T K
// indices. Dense: 3 T F elements. x is read again. Parameters: layers.{i}.moe.router.{weight,bias},
// layers.{i}.moe.experts.{e}.{up,down}. weight of the own experts.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/label_bias/label_bias.h"
#include "trainer/layers/layer_context.h"
#include "trainer/parallel/expert_dispatch.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

struct MoeConfig {
  int64_t num_experts = 1;  // E
  int64_t top_k = 1;        // K
  int64_t hidden = 0;       // F
  kernels::LabelBias label_bias = kernels::LabelBias::kNone;
};

struct MoeParameters {
  Parameter router;             // [E, d]
  Parameter router_bias;        // [E]
  std::vector<Parameter> up;    // [2F, d] of each own expert
  std::vector<Parameter> down;  // [d, F] of each own expert
};

class MoeLayer {
 public:
  /// `expert` may be null: all experts are on this rank. Own experts are [first_expert,
  /// first_expert
  /// + parameters.up.size()).
  MoeLayer(const MoeConfig& config, MoeParameters parameters, Communicator* expert,
           int64_t first_expert);

  /// out [T, d], x [T, d]; x must stay for the backward pass. `added` [T, d] (empty: nothing) is
  /// added to out.
  absl::Status Forward(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                       kernels::Tensor added = {});
  /// dx [T, d] overwritten. `dprobs` [E] is added to the gradient of every token's probabilities
  /// (the balance loss); empty: none.
  absl::Status Backward(const LayerContext& layer, kernels::Tensor dx, kernels::Tensor dout,
                        kernels::Tensor dprobs);
  /// The same for a few tokens and no backward pass: nothing is saved, and no size depends on what
  /// the tokens choose. All experts are on this rank.
  void Decode(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
              kernels::Tensor added = {}) const;
  /// Every token takes the one expert, with weight and probability 1: nothing below is kept.
  bool dense() const {
    return config_.num_experts == 1 && config_.label_bias == kernels::LabelBias::kNone;
  }
  /// prob_sums [E] (f64) and counts [E] (i64) += those of the last forward pass.
  void AddRoutingStatistics(const LayerContext& layer, kernels::Tensor prob_sums,
                            kernels::Tensor counts) const;
  /// experts [T, K] (i32) and weights [T, K] of the last forward pass.
  kernels::Tensor experts() const { return experts_; }
  kernels::Tensor weights() const { return weights_; }

 private:
  void DenseForward(const LayerContext& layer, kernels::Tensor out, kernels::Tensor x,
                    kernels::Tensor added);
  void DenseBackward(const LayerContext& layer, kernels::Tensor dx, kernels::Tensor dout);
  absl::Status Plan(const LayerContext& layer, kernels::Tensor counts, int64_t slots);
  absl::Status Dispatch(const LayerContext& layer, kernels::Tensor by_expert,
                        kernels::Tensor sorted) const;
  absl::Status Return(const LayerContext& layer, kernels::Tensor sorted,
                      kernels::Tensor by_expert) const;
  absl::Status ExpertsBackward(const LayerContext& layer, kernels::Tensor dx_rows,
                               kernels::Tensor dweight_rows, kernels::Tensor dout);

  MoeConfig config_;
  MoeParameters parameters_;
  Communicator* expert_;
  int64_t first_expert_;
  std::vector<kernels::Tensor> up_, down_, dup_, ddown_;
  DispatchPlan plan_;
  kernels::Tensor x_, probs_, weights_, experts_, slot_of_row_, row_of_slot_;  // saved, this rank's
  kernels::Tensor rows_, weight_rows_, gate_value_, hidden_, f_;               // saved, by expert
};

}  // namespace ela::trainer
