#include "trainer/loop/evaluation.h"

#include "proto/status_macros.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {

absl::StatusOr<EvalResult> Evaluate(const LayerContext& layer, Decoder* decoder, const Mesh& mesh,
                                    const BatchStream& stream, int64_t batches,
                                    int64_t global_batch_size) {
  double loss_sum = 0;
  int64_t tokens = 0;
  for (int64_t i = 0; i < batches; ++i) {
    StepBatch batch;
    const absl::Status filled = stream.Fill(/*step=*/0, i * global_batch_size, &batch);
    ELA_RETURN_IF_ERROR(AgreeOk(mesh.world(), filled));
    for (const TokenRows& rows : batch.micro) {
      ELA_RETURN_IF_ERROR(decoder->Forward(layer, rows, /*routing=*/nullptr));
      decoder->Loss(layer, rows, &loss_sum);
      decoder->Forget(layer);
    }
    tokens += batch.valid_targets;
  }
  ELA_RETURN_IF_ERROR(AllReduceSum(mesh.world(), &loss_sum, 1));
  ELA_RETURN_IF_ERROR(AllReduceSum(mesh.world(), &tokens, 1));
  return EvalResult{tokens > 0 ? loss_sum / static_cast<double>(tokens) : 0, tokens};
}

}  // namespace ela::trainer
