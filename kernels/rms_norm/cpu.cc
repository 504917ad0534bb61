// x, y, dx, dy and gain are float or bf16, each on its own; rstd and dgain are float.
#include <cmath>

#include "kernels/parallel.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {

void RmsNormForward(const Context& ctx, Tensor y, Tensor rstd, Tensor x, Tensor gain) {
  const int64_t rows = x.dim(0), d = x.row_numel();
  CheckShape("y", y, rows, d);
  CheckShape("rstd", rstd, rows, 1);
  CheckShape("gain", gain, d, 1);
  if (rows == 0) return;
  ArenaScope scope(ctx.scratch);
  const float* g = Widened(ctx, gain).as<float>();
  float* r = rstd.as<float>();
  const ThreadBuffers buffers(ctx, BufferFloats(x) + BufferFloats(y));
  ParallelBlocks(ctx, rows, RowsPerBlock(d), [&](int64_t begin, int64_t end) {
    float* x_buffer = buffers.Get();
    float* y_buffer = x_buffer + BufferFloats(x);
    for (int64_t t = begin; t < end; ++t) {
      const float* in = ReadRow(x, t, x_buffer);
      float* out = RowTarget(y, t, y_buffer);
      const float mean = Dot(in, in, d) / static_cast<float>(d);
      const float scale = 1.0f / std::sqrt(mean + static_cast<float>(kRmsNormEps));
      r[t] = scale;
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) out[i] = in[i] * scale * g[i];
      WriteRow(y, t, out);
    }
  });
}

void RmsNormBackward(const Context& ctx, Tensor dx, Tensor dgain, Tensor dy, Tensor x, Tensor gain,
                     Tensor rstd, Tensor added) {
  const int64_t rows = x.dim(0), d = x.row_numel();
  CheckShape("dx", dx, rows, d);
  CheckShape("dy", dy, rows, d);
  CheckShape("rstd", rstd, rows, 1);
  CheckShape("gain", gain, d, 1);
  CheckShape("dgain", dgain, d, 1);
  if (!added.empty()) CheckShape("added", added, rows, d);
  if (rows == 0) return;
  ArenaScope scope(ctx.scratch);
  const float* g = Widened(ctx, gain).as<float>();
  const float* r = rstd.as<float>();
  const int64_t x_floats = BufferFloats(x), dy_floats = BufferFloats(dy);
  const int64_t dx_floats = BufferFloats(dx),
                added_floats = added.empty() ? 0 : BufferFloats(added);
  const ThreadBuffers buffers(ctx, x_floats + dy_floats + d + dx_floats + added_floats);
  const RowPartials partials(ctx, rows, d);
  partials.Run(ctx, [&](int64_t begin, int64_t end, float* dgain_sum) {
    float* x_buffer = buffers.Get();
    float* dy_buffer = x_buffer + x_floats;
    float* scaled = dy_buffer + dy_floats;  // dy gain
    float* dx_buffer = scaled + d;
    for (int64_t t = begin; t < end; ++t) {
      const float* in = ReadRow(x, t, x_buffer);
      const float* grad = ReadRow(dy, t, dy_buffer);
      float* out = RowTarget(dx, t, dx_buffer);
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) scaled[i] = grad[i] * g[i];
      const float scale = r[t];
      const float mean = Dot(scaled, in, d) * scale / static_cast<float>(d);
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        const float normalised = in[i] * scale;
        dgain_sum[i] += grad[i] * normalised;
        out[i] = scale * (scaled[i] - normalised * mean);
      }
      if (!added.empty()) {
        const float* rest = ReadRow(added, t, dx_buffer + dx_floats);
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) out[i] += rest[i];
      }
      WriteRow(dx, t, out);
    }
  });
  partials.AddTo(ctx, dgain.as<float>());
}

}  // namespace ela::kernels::cpu
