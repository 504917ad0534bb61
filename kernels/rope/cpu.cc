// x is float or bf16. Angles are reduced in double, so positions in the millions turn as exactly as
// small ones.
#include <cmath>
#include <numbers>

#include "kernels/parallel.h"
#include "kernels/rope/rope.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {

void Rope(const Context& ctx, Tensor x, Tensor positions, double theta, bool inverse) {
  const int64_t rows = x.dim(0);
  CheckShape("positions", positions, rows, 1);
  if (rows == 0) return;
  ELA_CHECK(x.rank() == 3 && x.dim(2) % 2 == 0, "x is not [T, H, an even D]");
  const int64_t heads = x.dim(1), head_dim = x.dim(2), pairs = head_dim / 2;
  ArenaScope scope(ctx.scratch);
  double* turns = static_cast<double*>(
      ctx.scratch->Take(static_cast<size_t>(pairs) * sizeof(double)));  // per position
  for (int64_t i = 0; i < pairs; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    turns[i] = std::pow(theta, exponent) / (2 * std::numbers::pi) * (inverse ? -1 : 1);
  }
  const int32_t* position = positions.as<int32_t>();
  const ThreadBuffers buffers(ctx, 2 * pairs + BufferFloats(x));
  ParallelBlocks(ctx, rows, RowsPerBlock(x.row_numel()), [&](int64_t begin, int64_t end) {
    float* sine = buffers.Get();
    float* cosine = sine + pairs;
    float* buffer = cosine + pairs;
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < pairs; ++i) SinCosTurns(position[t] * turns[i], &sine[i], &cosine[i]);
      const float* in = ReadRow(x, t, buffer);
      float* out = RowTarget(x, t, buffer);
      for (int64_t h = 0; h < heads; ++h, in += head_dim, out += head_dim) {
        for (int64_t i = 0; i < pairs; ++i) {
          const float even = in[2 * i], odd = in[2 * i + 1];
          out[2 * i] = even * cosine[i] - odd * sine[i];
          out[2 * i + 1] = even * sine[i] + odd * cosine[i];
        }
      }
      WriteRow(x, t, buffer);
    }
  });
}

}  // namespace ela::kernels::cpu
