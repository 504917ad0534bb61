#include "trainer/loop/train_step.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "proto/status_macros.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {

using kernels::ArenaScope;
using kernels::Tensor;

TrainStep::TrainStep(const v1::JobSpec& spec, Decoder* decoder, ParameterStore* store,
                     const Mesh* mesh, AtPart gradients_final)
    : spec_(spec),
      decoder_(decoder),
      store_(store),
      mesh_(mesh),
      gradients_final_(std::move(gradients_final)),
      layers_(spec.model().num_layers()),
      experts_(spec.model().moe().num_experts()),
      batch_tokens_(spec.training().global_batch_size() * spec.data().seq_len()),
      aux_coef_(experts_ > 1 ? spec.model().moe().aux_coef() : 0) {}

absl::StatusOr<int64_t> TrainStep::GlobalValidTargets(const StepBatch& batch,
                                                      const absl::Status& filled) {
  int64_t sums[2] = {batch.valid_targets, filled.ok() ? 0 : 1};
  ELA_RETURN_IF_ERROR(AllReduceSum(mesh_->world(), sums, 2));
  if (sums[1] > 0) return AgreeOk(mesh_->world(), filled);
  return sums[0];
}

absl::Status TrainStep::CountFirst(const LayerContext& layer, const StepBatch& batch,
                                   RoutingStatistics* routing, RoutingStatistics* of_first) {
  for (auto rows = batch.micro.rbegin(); rows != batch.micro.rend(); ++rows) {
    RoutingStatistics local(layers_, experts_);
    ELA_RETURN_IF_ERROR(decoder_->Forward(layer, *rows, &local));
    routing->Add(local);
    *of_first = std::move(local);
  }
  return AllReduceSum(mesh_->world(), routing->counts.data(),
                      static_cast<int64_t>(routing->counts.size()));
}

std::vector<double> TrainStep::BalanceGradient(const std::vector<int64_t>& counts,
                                               int64_t tokens) const {
  std::vector<double> gradient;
  const double factor = aux_coef_ * static_cast<double>(experts_) /
                        static_cast<double>(batch_tokens_) / static_cast<double>(tokens);
  for (int64_t count : counts) gradient.push_back(factor * static_cast<double>(count));
  return gradient;
}

absl::Status TrainStep::BackwardOf(const LayerContext& layer, const TokenRows& rows,
                                   const RoutingStatistics& local, bool counted, bool last,
                                   StepLoss* out) {
  const ArenaScope scope(layer.ctx.scratch);
  std::vector<int64_t> counts = local.counts;
  if (experts_ > 1 && !counted) {
    ELA_RETURN_IF_ERROR(
        AllReduceSum(mesh_->world(), counts.data(), static_cast<int64_t>(counts.size())));
    for (size_t i = 0; i < counts.size(); ++i) out->routing.counts[i] += counts[i];
  }

  Tensor dprobs;
  if (aux_coef_ > 0) {
    const int64_t micro_tokens = rows.sequences() * spec_.data().seq_len() * mesh_->sizes().data;
    const std::vector<double> gradient = counted
                                             ? BalanceGradient(out->routing.counts, batch_tokens_)
                                             : BalanceGradient(counts, micro_tokens);
    for (size_t i = 0; i < gradient.size(); ++i) aux_sum_ += gradient[i] * local.prob_sums[i];
    dprobs = layer.ScratchStatistic({layers_, experts_}, gradient);
  }
  return decoder_->Backward(layer, rows, scale_, dprobs, &loss_sum_,
                            last ? gradients_final_ : AtPart());
}

absl::Status TrainStep::Share(uint32_t flags, StepLoss* out) {
  struct Word {
    double loss_sum, aux;
    uint32_t flags, unused;
  };
  const Word mine = {loss_sum_, aux_sum_, flags, 0};
  std::vector<Word> words(static_cast<size_t>(mesh_->world().size()));
  ELA_RETURN_IF_ERROR(mesh_->world().AllGather(words.data(), &mine, sizeof(Word)));
  double loss_sum = 0, aux = 0;
  out->flags.all = ~uint32_t{0};
  for (const Word& word : words) {
    loss_sum += word.loss_sum;
    aux += word.aux;
    out->flags.any |= word.flags;
    out->flags.all &= word.flags;
  }
  out->loss = loss_sum * scale_ + aux;
  out->aux_loss = aux;
  out->locally_finite = std::isfinite(loss_sum_) && std::isfinite(aux_sum_);
  return absl::OkStatus();
}

absl::StatusOr<StepLoss> TrainStep::Run(const LayerContext& layer, const StepBatch& batch,
                                        const absl::Status& filled, uint32_t flags) {
  StepLoss out{.routing = RoutingStatistics(layers_, experts_)};
  ELA_ASSIGN_OR_RETURN(out.valid_targets, GlobalValidTargets(batch, filled));
  scale_ = out.valid_targets > 0 ? 1.0 / static_cast<double>(out.valid_targets) : 0;
  loss_sum_ = aux_sum_ = 0;
  store_->ZeroGrads();
  const bool count_first = aux_coef_ > 0 && batch.micro.size() > 1 &&
                           spec_.model().moe().aux_scope() == v1::AUX_SCOPE_GLOBAL_BATCH;
  RoutingStatistics local(layers_, experts_);
  if (count_first) ELA_RETURN_IF_ERROR(CountFirst(layer, batch, &out.routing, &local));
  for (const TokenRows& rows : batch.micro) {
    const bool first = &rows == &batch.micro.front(), last = &rows == &batch.micro.back();
    if (!first || !count_first) {
      local = RoutingStatistics(layers_, experts_);
      ELA_RETURN_IF_ERROR(decoder_->Forward(layer, rows, experts_ > 1 ? &local : nullptr));
    }
    ELA_RETURN_IF_ERROR(BackwardOf(layer, rows, local, count_first, last, &out));
  }
  ELA_RETURN_IF_ERROR(Share(flags, &out));
  return out;
}

}  // namespace ela::trainer
