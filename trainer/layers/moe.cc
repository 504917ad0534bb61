#include "trainer/layers/moe.h"

#include <utility>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/status_macros.h"

namespace ela::trainer {

using kernels::Tensor;

MoeLayer::MoeLayer(const MoeConfig& config, MoeParameters parameters, Communicator* expert,
                   int64_t first_expert)
    : config_(config),
      parameters_(std::move(parameters)),
      expert_(expert != nullptr && expert->size() > 1 ? expert : nullptr),
      first_expert_(first_expert) {
  for (const Parameter& p : parameters_.up) {
    up_.push_back(p.value);
    dup_.push_back(p.grad);
  }
  for (const Parameter& p : parameters_.down) {
    down_.push_back(p.value);
    ddown_.push_back(p.grad);
  }
}

// Without expert parallelism the sorted rows already are the rows by expert.
absl::Status MoeLayer::Dispatch(const LayerContext& layer, Tensor by_expert, Tensor sorted) const {
  if (expert_ != nullptr) return DispatchRows(layer.ctx, *expert_, by_expert, sorted, plan_);
  kernels::Copy(layer.ctx, by_expert, sorted);
  return absl::OkStatus();
}
absl::Status MoeLayer::Return(const LayerContext& layer, Tensor sorted, Tensor by_expert) const {
  if (expert_ != nullptr) return ReturnRows(layer.ctx, *expert_, sorted, by_expert, plan_);
  kernels::Copy(layer.ctx, sorted, by_expert);
  return absl::OkStatus();
}

// The counts come to the host: what follows is as long as they say. One expert gets every slot.
absl::Status MoeLayer::Plan(const LayerContext& layer, Tensor counts, int64_t slots) {
  std::vector<int64_t> rows(static_cast<size_t>(config_.num_experts), slots);
  if (rows.size() > 1) kernels::CopyOut(layer.ctx, rows.data(), counts);
  if (expert_ != nullptr) return PlanDispatch(*expert_, rows.data(), config_.num_experts, &plan_);
  plan_ = LocalDispatchPlan(rows);
  return absl::OkStatus();
}

void MoeLayer::DenseForward(const LayerContext& layer, Tensor out, Tensor x, Tensor added) {
  const kernels::Context& ctx = layer.ctx;
  const int64_t t = x.dim(0);
  x_ = x;
  gate_value_ = layer.Saved({t, 2 * config_.hidden});
  hidden_ = layer.Saved({t, config_.hidden});
  plan_ = LocalDispatchPlan({t});

  kernels::GroupedLinearForward(ctx, gate_value_, x, up_, plan_.offsets);
  kernels::SwigluForward(ctx, hidden_, gate_value_);
  kernels::GroupedLinearForward(ctx, out, hidden_, down_, plan_.offsets, added);
}

void MoeLayer::DenseBackward(const LayerContext& layer, Tensor dx, Tensor dout) {
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = dx.dim(0);
  const Tensor dhidden = layer.Scratch({t, config_.hidden});
  const Tensor dgate_value = layer.Scratch({t, 2 * config_.hidden});

  kernels::GroupedLinearBackward(ctx, dhidden, ddown_, dout, hidden_, down_, plan_.offsets);
  kernels::SwigluBackward(ctx, dgate_value, dhidden, gate_value_);
  kernels::GroupedLinearBackward(ctx, dx, dup_, dgate_value, x_, up_, plan_.offsets);
}

absl::Status MoeLayer::Forward(const LayerContext& layer, Tensor out, Tensor x, Tensor added) {
  const kernels::TraceRange range("MoeLayer::Forward");
  if (dense()) {
    DenseForward(layer, out, x, added);
    return absl::OkStatus();
  }
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = x.dim(0), d = x.dim(1), k = config_.top_k, slots = t * k;
  const int64_t own_experts = static_cast<int64_t>(up_.size());
  x_ = x;
  probs_ = layer.SavedStatistic({t, config_.num_experts});
  weights_ = layer.SavedStatistic({t, k});
  experts_ = layer.SavedIndex({t, k});
  slot_of_row_ = layer.SavedIndex({slots});
  row_of_slot_ = layer.SavedIndex({t, k});
  const Tensor counts = layer.ScratchCounts({config_.num_experts});

  kernels::RouterForward(ctx, probs_, weights_, experts_, x, parameters_.router.value,
                         parameters_.router_bias.value);
  kernels::SortSlots(ctx, slot_of_row_, row_of_slot_, counts, experts_);
  ELA_RETURN_IF_ERROR(Plan(layer, counts, slots));
  const int64_t r = plan_.rows();
  rows_ = layer.Saved({r, d});
  weight_rows_ = layer.SavedStatistic({r});
  gate_value_ = layer.Saved({r, 2 * config_.hidden});
  hidden_ = layer.Saved({r, config_.hidden});
  f_ = layer.Saved({r, d});
  const Tensor sorted = layer.Scratch({slots, d}),
               sorted_weights = layer.ScratchStatistic({slots, 1});
  const Tensor y = layer.Scratch({r, d});
  const Tensor labels = parameters_.router.value.Rows(first_expert_, first_expert_ + own_experts);

  kernels::GatherRows(ctx, sorted, x, slot_of_row_, k);
  kernels::GatherRows(ctx, sorted_weights, weights_.View({slots, 1}), slot_of_row_, 1);
  ELA_RETURN_IF_ERROR(Dispatch(layer, rows_, sorted));
  ELA_RETURN_IF_ERROR(Dispatch(layer, weight_rows_.View({r, 1}), sorted_weights));
  kernels::GroupedLinearForward(ctx, gate_value_, rows_, up_, plan_.offsets);
  kernels::SwigluForward(ctx, hidden_, gate_value_);
  kernels::GroupedLinearForward(ctx, f_, hidden_, down_, plan_.offsets);
  kernels::LabelBiasForward(ctx, y, f_, weight_rows_, labels, plan_.offsets, config_.label_bias);
  ELA_RETURN_IF_ERROR(Return(layer, sorted, y));
  kernels::CombineRows(ctx, out, sorted, row_of_slot_, added);
  return absl::OkStatus();
}

void MoeLayer::Decode(const LayerContext& layer, Tensor out, Tensor x, Tensor added) const {
  ELA_CHECK(static_cast<int64_t>(up_.size()) == config_.num_experts, "%zu experts are here",
            up_.size());
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = x.dim(0), k = config_.top_k;
  if (dense()) {
    const Tensor gate_value = layer.Scratch({t, 2 * config_.hidden});
    const Tensor hidden = layer.Scratch({t, config_.hidden});
    kernels::LinearForward(ctx, gate_value, x, up_[0]);
    kernels::SwigluForward(ctx, hidden, gate_value);
    return kernels::LinearForward(ctx, out, hidden, down_[0], added);
  }
  const Tensor probs = layer.ScratchStatistic({t, config_.num_experts});
  const Tensor weights = layer.ScratchStatistic({t, k});
  const Tensor experts(ctx.scratch->Take(static_cast<size_t>(t * k) * sizeof(int32_t)),
                       kernels::DType::kI32, {t, k});
  kernels::RouterForward(ctx, probs, weights, experts, x, parameters_.router.value,
                         parameters_.router_bias.value);
  kernels::ExpertsForward(ctx, out, x, weights, experts, up_, down_, parameters_.router.value,
                          config_.label_bias, added);
}

absl::Status MoeLayer::ExpertsBackward(const LayerContext& layer, Tensor dx_rows,
                                       Tensor dweight_rows, Tensor dout) {
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t d = dout.dim(1), r = plan_.rows();
  const int64_t own_experts = static_cast<int64_t>(up_.size());
  const Tensor sorted_dy = layer.Scratch({slot_of_row_.dim(0), d}), dy = layer.Scratch({r, d});
  const Tensor df = layer.Scratch({r, d}), dhidden = layer.Scratch({r, config_.hidden});
  const Tensor dgate_value = layer.Scratch({r, 2 * config_.hidden});
  const Tensor labels = parameters_.router.value.Rows(first_expert_, first_expert_ + own_experts);
  const Tensor dlabels = parameters_.router.grad.Rows(first_expert_, first_expert_ + own_experts);

  kernels::GatherRows(ctx, sorted_dy, dout, slot_of_row_, config_.top_k);
  ELA_RETURN_IF_ERROR(Dispatch(layer, dy, sorted_dy));
  kernels::LabelBiasBackward(ctx, df, dweight_rows, dlabels, dy, f_, weight_rows_, labels,
                             plan_.offsets, config_.label_bias);
  kernels::GroupedLinearBackward(ctx, dhidden, ddown_, df, hidden_, down_, plan_.offsets);
  kernels::SwigluBackward(ctx, dgate_value, dhidden, gate_value_);
  kernels::GroupedLinearBackward(ctx, dx_rows, dup_, dgate_value, rows_, up_, plan_.offsets);
  return absl::OkStatus();
}

absl::Status MoeLayer::Backward(const LayerContext& layer, Tensor dx, Tensor dout, Tensor dprobs) {
  const kernels::TraceRange range("MoeLayer::Backward");
  if (dense()) {
    DenseBackward(layer, dx, dout);
    return absl::OkStatus();
  }
  const kernels::Context& ctx = layer.ctx;
  const kernels::ArenaScope scope(ctx.scratch);
  const int64_t t = dx.dim(0), d = dx.dim(1), k = config_.top_k, slots = t * k, r = plan_.rows();
  const Tensor dx_rows = layer.Scratch({r, d}), dweight_rows = layer.ScratchStatistic({r});
  const Tensor sorted_dx = layer.Scratch({slots, d});
  const Tensor sorted_dweights = layer.ScratchStatistic({slots, 1});
  const Tensor dweights = layer.ScratchStatistic({t, k}), dx_router = layer.Scratch({t, d});

  ELA_RETURN_IF_ERROR(ExpertsBackward(layer, dx_rows, dweight_rows, dout));
  ELA_RETURN_IF_ERROR(Return(layer, sorted_dx, dx_rows));
  ELA_RETURN_IF_ERROR(Return(layer, sorted_dweights, dweight_rows.View({r, 1})));
  kernels::GatherRows(ctx, dweights.View({slots, 1}), sorted_dweights, row_of_slot_.View({slots}),
                      1);
  kernels::RouterBackward(ctx, dx_router, parameters_.router.grad, parameters_.router_bias.grad,
                          dweights, dprobs, probs_, weights_, experts_, x_,
                          parameters_.router.value);
  kernels::CombineRows(ctx, dx, sorted_dx, row_of_slot_, dx_router);
  return absl::OkStatus();
}

void MoeLayer::AddRoutingStatistics(const LayerContext& layer, Tensor prob_sums,
                                    Tensor counts) const {
  kernels::RouterStatistics(layer.ctx, prob_sums, counts, probs_, experts_);
}

}  // namespace ela::trainer
