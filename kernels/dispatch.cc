// The only place that switches on the back end. Each op is defined once per back end, with the
// signature of its header, in the namespaces reference, cpu and (with CUDA) cuda; its block here is
// the declaration of those and the switch.
#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace ela::kernels {
namespace {

/// What every op checks: scratch and counters are there. Counts the op.
void Begin(const Context& ctx, const char* op) {
  ELA_CHECK(ctx.scratch != nullptr && ctx.counters != nullptr, "%s: no scratch or counters", op);
  switch (ctx.backend) {
    case Backend::kReference:
      ++ctx.counters->reference_ops;
      return;
    case Backend::kCpu:
      ++ctx.counters->cpu_ops;
      return;
    case Backend::kCuda:
      ELA_CHECK(ctx.device != nullptr, "%s: no device: %s", op, WhyNoCudaDevice().c_str());
      ++ctx.counters->cuda_ops;
  }
}

/// The same, for an op on floating-point tensors: their element type is one the back end runs.
void Begin(const Context& ctx, const char* op, const Tensor& typed) {
  Begin(ctx, op);
  const DType dtype = typed.dtype();
  const bool runs = ctx.backend == Backend::kReference
                        ? dtype == DType::kF64
                        : dtype == DType::kF32 || dtype == DType::kBf16;
  ELA_CHECK(runs, "%s: dtype %d (the reference runs f64, the others f32 and bf16)", op,
            static_cast<int>(dtype));
}

}  // namespace

// Declares the back ends of an op: functions of the same type as the op itself.
#define ELA_BACKENDS(op)           \
  namespace reference {            \
  decltype(::ela::kernels::op) op; \
  }                                \
  namespace cpu {                  \
  decltype(::ela::kernels::op) op; \
  }                                \
  namespace cuda {                 \
  decltype(::ela::kernels::op) op; \
  }

#ifdef ELA_HAVE_CUDA
#define ELA_CUDA_OP(op, ...) cuda::op(ctx, __VA_ARGS__)
#else
#define ELA_CUDA_OP(op, ...) ELA_CHECK(false, "%s: this build has no CUDA back end", #op)
#endif

#define ELA_SWITCH(op, ...)                    \
  do {                                         \
    if (ctx.backend == Backend::kReference) {  \
      reference::op(ctx, __VA_ARGS__);         \
    } else if (ctx.backend == Backend::kCpu) { \
      cpu::op(ctx, __VA_ARGS__);               \
    } else {                                   \
      ELA_CUDA_OP(op, __VA_ARGS__);            \
    }                                          \
  } while (false)

// The body of an op: `typed` is the tensor whose element type decides; the rest are the op's
// arguments.
#define ELA_RUN(op, typed, ...)  \
  do {                           \
    Begin(ctx, #op, typed);      \
    ELA_SWITCH(op, __VA_ARGS__); \
  } while (false)

// The body of an op that takes every element type.
#define ELA_RUN_ANY(op, ...)     \
  do {                           \
    Begin(ctx, #op);             \
    ELA_SWITCH(op, __VA_ARGS__); \
  } while (false)

ELA_BACKENDS(LinearForward)
void LinearForward(const Context& ctx, Tensor y, Tensor x, Tensor w, Tensor added) {
  ELA_RUN(LinearForward, x, y, x, w, added);
}

ELA_BACKENDS(LinearBackward)
void LinearBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w) {
  ELA_RUN(LinearBackward, dy, dx, dw, dy, x, w);
}

ELA_BACKENDS(GroupedLinearForward)
void GroupedLinearForward(const Context& ctx, Tensor y, Tensor x, const std::vector<Tensor>& w,
                          const std::vector<int64_t>& offsets, Tensor added) {
  ELA_RUN(GroupedLinearForward, x, y, x, w, offsets, added);
}

ELA_BACKENDS(GroupedLinearBackward)
void GroupedLinearBackward(const Context& ctx, Tensor dx, const std::vector<Tensor>& dw, Tensor dy,
                           Tensor x, const std::vector<Tensor>& w,
                           const std::vector<int64_t>& offsets) {
  ELA_RUN(GroupedLinearBackward, dy, dx, dw, dy, x, w, offsets);
}

ELA_BACKENDS(RmsNormForward)
void RmsNormForward(const Context& ctx, Tensor y, Tensor rstd, Tensor x, Tensor gain) {
  ELA_RUN(RmsNormForward, x, y, rstd, x, gain);
}

ELA_BACKENDS(RmsNormBackward)
void RmsNormBackward(const Context& ctx, Tensor dx, Tensor dgain, Tensor dy, Tensor x, Tensor gain,
                     Tensor rstd, Tensor added) {
  ELA_RUN(RmsNormBackward, x, dx, dgain, dy, x, gain, rstd, added);
}

ELA_BACKENDS(Rope)
void Rope(const Context& ctx, Tensor x, Tensor positions, double theta, bool inverse) {
  ELA_RUN(Rope, x, x, positions, theta, inverse);
}

ELA_BACKENDS(ElaStateIdentity)
void ElaStateIdentity(const Context& ctx, Tensor state, const ElaConfig& config) {
  ELA_RUN(ElaStateIdentity, state, state, config);
}

ELA_BACKENDS(ElaFold)
void ElaFold(const Context& ctx, Tensor acc, Tensor later, const ElaConfig& config,
             const std::vector<uint8_t>& take, bool reverse) {
  ELA_RUN(ElaFold, acc, acc, later, config, take, reverse);
}

ELA_BACKENDS(ElaLocalState)
void ElaLocalState(const Context& ctx, Tensor state, Tensor k, Tensor v, const ElaConfig& config,
                   const Spans& spans, SpanEdge edge) {
  ELA_RUN(ElaLocalState, k, state, k, v, config, spans, edge);
}

ELA_BACKENDS(ElaForward)
void ElaForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                Tensor before, Tensor after, const ElaConfig& config, const Spans& spans,
                Tensor segments) {
  ELA_RUN(ElaForward, q, y, lse, q, k, v, before, after, config, spans, segments);
}

#ifdef ELA_HAVE_CUDA
namespace cuda {
decltype(::ela::kernels::ElaSegmentFloats) ElaSegmentFloats;
}
#endif
int64_t ElaSegmentFloats(const Context& ctx, Tensor y, Tensor q, Tensor k, Tensor v,
                         const ElaConfig& config, const Spans& spans) {
#ifdef ELA_HAVE_CUDA
  if (ctx.backend == Backend::kCuda) {
    return cuda::ElaSegmentFloats(ctx, y, q, k, v, config, spans);
  }
#endif
  return 0;
}

ELA_BACKENDS(ElaLocalGradState)
void ElaLocalGradState(const Context& ctx, Tensor gstate, Tensor dy, Tensor q, Tensor y, Tensor lse,
                       const ElaConfig& config, const Spans& spans, SpanEdge edge) {
  ELA_RUN(ElaLocalGradState, q, gstate, dy, q, y, lse, config, spans, edge);
}

ELA_BACKENDS(ElaBackward)
void ElaBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy, Tensor q, Tensor k,
                 Tensor v, Tensor y, Tensor lse, Tensor before, Tensor after, Tensor gbefore,
                 Tensor gafter, const ElaConfig& config, const Spans& spans, Tensor segments) {
  ELA_RUN(ElaBackward, q, dq, dk, dv, dy, q, k, v, y, lse, before, after, gbefore, gafter, config,
          spans, segments);
}

ELA_BACKENDS(ElaDecode)
void ElaDecode(const Context& ctx, Tensor y, Tensor state, Tensor q, Tensor k, Tensor v,
               const ElaConfig& config) {
  ELA_RUN(ElaDecode, q, y, state, q, k, v, config);
}

ELA_BACKENDS(ElaTakeSlowPathChunks)
void ElaTakeSlowPathChunks(const Context& ctx, Tensor chunks) {
  ELA_RUN_ANY(ElaTakeSlowPathChunks, chunks);
}

ELA_BACKENDS(EmbeddingForward)
void EmbeddingForward(const Context& ctx, Tensor x, Tensor ids, Tensor table) {
  ELA_RUN(EmbeddingForward, x, x, ids, table);
}

ELA_BACKENDS(EmbeddingBackward)
void EmbeddingBackward(const Context& ctx, Tensor dtable, Tensor dx, Tensor ids) {
  ELA_RUN(EmbeddingBackward, dx, dtable, dx, ids);
}

ELA_BACKENDS(RouterForward)
void RouterForward(const Context& ctx, Tensor probs, Tensor weights, Tensor experts, Tensor x,
                   Tensor w, Tensor b) {
  ELA_RUN(RouterForward, x, probs, weights, experts, x, w, b);
}

ELA_BACKENDS(RouterBackward)
void RouterBackward(const Context& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dweights,
                    Tensor dprobs_all, Tensor probs, Tensor weights, Tensor experts, Tensor x,
                    Tensor w) {
  ELA_RUN(RouterBackward, x, dx, dw, db, dweights, dprobs_all, probs, weights, experts, x, w);
}

ELA_BACKENDS(RouterStatistics)
void RouterStatistics(const Context& ctx, Tensor prob_sums, Tensor counts, Tensor probs,
                      Tensor experts) {
  ELA_RUN(RouterStatistics, probs, prob_sums, counts, probs, experts);
}

ELA_BACKENDS(SortSlots)
void SortSlots(const Context& ctx, Tensor slot_of_row, Tensor row_of_slot, Tensor counts,
               Tensor experts) {
  ELA_RUN_ANY(SortSlots, slot_of_row, row_of_slot, counts, experts);
}

ELA_BACKENDS(GatherRows)
void GatherRows(const Context& ctx, Tensor y, Tensor x, Tensor index, int64_t divisor) {
  ELA_RUN(GatherRows, y, y, x, index, divisor);
}

ELA_BACKENDS(CombineRows)
void CombineRows(const Context& ctx, Tensor y, Tensor rows, Tensor row_of_slot, Tensor added) {
  ELA_RUN(CombineRows, y, y, rows, row_of_slot, added);
}

ELA_BACKENDS(ExpertsForward)
void ExpertsForward(const Context& ctx, Tensor out, Tensor x, Tensor weights, Tensor experts,
                    const std::vector<Tensor>& up, const std::vector<Tensor>& down, Tensor labels,
                    LabelBias bias, Tensor added) {
  ELA_RUN(ExpertsForward, x, out, x, weights, experts, up, down, labels, bias, added);
}

ELA_BACKENDS(SwigluForward)
void SwigluForward(const Context& ctx, Tensor h, Tensor gu) { ELA_RUN(SwigluForward, gu, h, gu); }

ELA_BACKENDS(SwigluBackward)
void SwigluBackward(const Context& ctx, Tensor dgu, Tensor dh, Tensor gu) {
  ELA_RUN(SwigluBackward, gu, dgu, dh, gu);
}

ELA_BACKENDS(LabelBiasForward)
void LabelBiasForward(const Context& ctx, Tensor y, Tensor f, Tensor w, Tensor labels,
                      const std::vector<int64_t>& offsets, LabelBias bias) {
  ELA_RUN(LabelBiasForward, f, y, f, w, labels, offsets, bias);
}

ELA_BACKENDS(LabelBiasBackward)
void LabelBiasBackward(const Context& ctx, Tensor df, Tensor dw, Tensor dlabels, Tensor dy,
                       Tensor f, Tensor w, Tensor labels, const std::vector<int64_t>& offsets,
                       LabelBias bias) {
  ELA_RUN(LabelBiasBackward, f, df, dw, dlabels, dy, f, w, labels, offsets, bias);
}

ELA_BACKENDS(SoftmaxAttentionForward)
void SoftmaxAttentionForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                             Tensor q_document, Tensor k_document, Tensor q_position,
                             Tensor k_position, const SoftmaxAttentionConfig& config) {
  ELA_RUN(SoftmaxAttentionForward, q, y, lse, q, k, v, q_document, k_document, q_position,
          k_position, config);
}

ELA_BACKENDS(SoftmaxAttentionMerge)
void SoftmaxAttentionMerge(const Context& ctx, Tensor y, Tensor lse, Tensor part_y,
                           Tensor part_lse) {
  ELA_RUN(SoftmaxAttentionMerge, y, y, lse, part_y, part_lse);
}

ELA_BACKENDS(SoftmaxAttentionDecode)
void SoftmaxAttentionDecode(const Context& ctx, Tensor y, Tensor keys, Tensor values, Tensor q,
                            Tensor k, Tensor v, Tensor positions,
                            const SoftmaxAttentionConfig& config) {
  ELA_RUN(SoftmaxAttentionDecode, q, y, keys, values, q, k, v, positions, config);
}

ELA_BACKENDS(SoftmaxAttentionBackward)
void SoftmaxAttentionBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy,
                              Tensor q, Tensor k, Tensor v, Tensor lse, Tensor delta,
                              Tensor q_document, Tensor k_document, Tensor q_position,
                              Tensor k_position, const SoftmaxAttentionConfig& config) {
  ELA_RUN(SoftmaxAttentionBackward, q, dq, dk, dv, dy, q, k, v, lse, delta, q_document, k_document,
          q_position, k_position, config);
}

ELA_BACKENDS(LossForwardBackward)
void LossForwardBackward(const Context& ctx, Tensor loss_sum, Tensor dx, Tensor dtable, Tensor x,
                         Tensor table, Tensor targets, double scale) {
  ELA_RUN(LossForwardBackward, x, loss_sum, dx, dtable, x, table, targets, scale);
}

ELA_BACKENDS(TokenLogprobs)
void TokenLogprobs(const Context& ctx, Tensor logprob, Tensor x, Tensor table, Tensor targets) {
  ELA_RUN(TokenLogprobs, x, logprob, x, table, targets);
}

ELA_BACKENDS(AdamWUpdate)
void AdamWUpdate(const Context& ctx, Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad,
                 const AdamWConfig& config) {
  ELA_RUN(AdamWUpdate, master, param, master, m, v, grad, config);
}

ELA_BACKENDS(SumOfSquares)
void SumOfSquares(const Context& ctx, Tensor out, Tensor x) { ELA_RUN(SumOfSquares, x, out, x); }

ELA_BACKENDS(Add)
void Add(const Context& ctx, Tensor y, Tensor a, Tensor b) { ELA_RUN(Add, y, y, a, b); }

ELA_BACKENDS(Fill)
void Fill(const Context& ctx, Tensor x, double value) { ELA_RUN_ANY(Fill, x, value); }

ELA_BACKENDS(Copy)
void Copy(const Context& ctx, Tensor y, Tensor x) { ELA_RUN_ANY(Copy, y, x); }

ELA_BACKENDS(RowArgmax)
void RowArgmax(const Context& ctx, Tensor index, Tensor x) { ELA_RUN(RowArgmax, x, index, x); }

ELA_BACKENDS(RowDots)
void RowDots(const Context& ctx, Tensor dots, Tensor a, Tensor b) {
  ELA_RUN(RowDots, a, dots, a, b);
}

ELA_BACKENDS(Scale)
void Scale(const Context& ctx, Tensor x, double factor) { ELA_RUN(Scale, x, x, factor); }

}  // namespace ela::kernels
