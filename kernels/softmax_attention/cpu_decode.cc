// A thread takes a head of a sequence: its scores, their weights, the sum of the values.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

void PutRow(const Tensor& cache, int64_t row, const Tensor& x, int64_t from) {
  const size_t size = SizeOf(x.dtype());
  std::memcpy(static_cast<char*>(cache.data()) + static_cast<size_t>(row * x.row_numel()) * size,
              static_cast<const char*>(x.data()) + static_cast<size_t>(from * x.stride()) * size,
              static_cast<size_t>(x.row_numel()) * size);
}

}  // namespace

void SoftmaxAttentionDecode(const Context& ctx, Tensor y, Tensor keys, Tensor values, Tensor q,
                            Tensor k, Tensor v, Tensor positions,
                            const SoftmaxAttentionConfig& config) {
  const int64_t sequences = q.dim(0), heads = config.num_heads, d = config.head_dim;
  const int64_t width = heads * d, room = keys.dim(1);
  const int32_t* at = positions.as<int32_t>();
  CheckDecodeShapes(y, keys, values, q, k, v, positions, config);
  if (sequences == 0) return;
  for (int64_t b = 0; b < sequences; ++b) {
    ELA_CHECK(at[b] >= 0 && at[b] < room, "position %d of %lld", at[b],
              static_cast<long long>(room));
    PutRow(keys, b * room + at[b], k, b);
    PutRow(values, b * room + at[b], v, b);
  }
  const int64_t most = *std::max_element(at, at + sequences) + 1;
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  const ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, 3 * d + most);
  ParallelFor(ctx, sequences * heads, [&](int64_t item) {
    const int64_t b = item / heads, column = item % heads * d, seen = at[b] + 1;
    float* wide = buffers.Get();
    float *out = wide + d, *wide_query = out + d, *scores = wide_query + d;
    const float* query = ReadFloats(q, b * q.stride() + column, d, wide_query);
    const auto row_of = [&](const Tensor& cache, int64_t j) {
      return ReadFloats(cache, (b * room + j) * width + column, d, wide);
    };
    for (int64_t j = 0; j < seen; ++j) scores[j] = scale * Dot(query, row_of(keys, j), d);
    const float sum = ExpSum(scores, scores, MaxOf(scores, seen), seen);
    std::fill_n(out, d, 0.0f);
    for (int64_t j = 0; j < seen; ++j) {
      const float* value = row_of(values, j);
      for (int64_t c = 0; c < d; ++c) out[c] += scores[j] * value[c];
    }
    float* target = FloatTarget(y, b * y.stride() + column, out);
    for (int64_t c = 0; c < d; ++c) target[c] = out[c] / sum;
    WriteFloats(y, b * y.stride() + column, d, target);
  });
}

}  // namespace ela::kernels::cpu
