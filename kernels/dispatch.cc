// The only place that switches on the back end. Each op is defined once per back end, with the
// signature of its header, in the namespaces reference, cpu and (with CUDA) cuda; its block here is
// the declaration of those and the switch.
#include "kernels/check.h"
#include "kernels/ops.h"

namespace ela::kernels {
namespace {

/// What every op checks: scratch and counters are there, and the element type is one the back end
/// runs. Counts the op.
[[maybe_unused]] void Begin(const Context& ctx, const char* op, const Tensor& typed) {
  ELA_CHECK(ctx.scratch != nullptr && ctx.counters != nullptr, "%s: no scratch or counters", op);
  const int dtype = static_cast<int>(typed.dtype());
  switch (ctx.backend) {
    case Backend::kReference:
      ELA_CHECK(typed.dtype() == DType::kF64, "%s: the reference runs f64, not dtype %d", op,
                dtype);
      ++ctx.counters->reference_ops;
      return;
    case Backend::kCpu:
      ELA_CHECK(typed.dtype() == DType::kF32 || typed.dtype() == DType::kBf16,
                "%s: the CPU back end runs f32 and bf16, not dtype %d", op, dtype);
      ++ctx.counters->cpu_ops;
      return;
    case Backend::kCuda:
      ELA_CHECK(false, "%s: this build has no CUDA back end", op);
  }
}

}  // namespace

// Declares the back ends of an op: functions of the same type as the op itself.
#define ELA_BACKENDS(op)           \
  namespace reference {            \
  decltype(::ela::kernels::op) op; \
  }                                \
  namespace cpu {                  \
  decltype(::ela::kernels::op) op; \
  }

// The body of an op: `typed` is the tensor whose element type decides; the rest are the op's
// arguments.
#define ELA_RUN(op, typed, ...)               \
  do {                                        \
    Begin(ctx, #op, typed);                   \
    if (ctx.backend == Backend::kReference) { \
      reference::op(ctx, __VA_ARGS__);        \
    } else {                                  \
      cpu::op(ctx, __VA_ARGS__);              \
    }                                         \
  } while (false)

}  // namespace ela::kernels
