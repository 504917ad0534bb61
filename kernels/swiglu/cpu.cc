// All tensors float or bf16, each on its own.
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {

void SwigluForward(const Context& ctx, Tensor h, Tensor gu) {
  const int64_t rows = h.dim(0), width = h.row_numel();
  CheckShape("gu", gu, rows, 2 * width);
  ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, BufferFloats(gu) + BufferFloats(h));
  ParallelBlocks(ctx, rows, RowsPerBlock(2 * width), [&](int64_t begin, int64_t end) {
    float* gu_buffer = buffers.Get();
    float* h_buffer = gu_buffer + BufferFloats(gu);
    for (int64_t r = begin; r < end; ++r) {
      const float* g = ReadRow(gu, r, gu_buffer);
      const float* u = g + width;
      float* out = RowTarget(h, r, h_buffer);
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) out[i] = g[i] * SigmoidF(g[i]) * u[i];
      WriteRow(h, r, out);
    }
  });
}

void SwigluBackward(const Context& ctx, Tensor dgu, Tensor dh, Tensor gu) {
  const int64_t rows = dh.dim(0), width = dh.row_numel();
  CheckShape("gu", gu, rows, 2 * width);
  CheckShape("dgu", dgu, rows, 2 * width);
  ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, BufferFloats(gu) + BufferFloats(dh) + BufferFloats(dgu));
  ParallelBlocks(ctx, rows, RowsPerBlock(2 * width), [&](int64_t begin, int64_t end) {
    float* gu_buffer = buffers.Get();
    float* dh_buffer = gu_buffer + BufferFloats(gu);
    float* dgu_buffer = dh_buffer + BufferFloats(dh);
    for (int64_t r = begin; r < end; ++r) {
      const float* g = ReadRow(gu, r, gu_buffer);
      const float* u = g + width;
      const float* grad = ReadRow(dh, r, dh_buffer);
      float* dg = RowTarget(dgu, r, dgu_buffer);
      float* du = dg + width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const float sigmoid = SigmoidF(g[i]);
        const float gate = g[i], value = u[i];  // read before they may be overwritten
        dg[i] = grad[i] * value * sigmoid * (1.0f + gate * (1.0f - sigmoid));
        du[i] = grad[i] * gate * sigmoid;
      }
      WriteRow(dgu, r, dg);
    }
  });
}

}  // namespace ela::kernels::cpu
