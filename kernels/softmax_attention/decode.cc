// What the back ends of decoding share.
#include "kernels/rows.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace ela::kernels {

void CheckDecodeShapes(const Tensor& y, const Tensor& keys, const Tensor& values, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& positions,
                       const SoftmaxAttentionConfig& config) {
  const int64_t sequences = q.dim(0), width = config.num_heads * config.head_dim;
  for (const Tensor* x : {&y, &q, &k, &v}) CheckShape("y, q, k or v", *x, sequences, width);
  CheckShape("positions", positions, sequences, 1);
  for (const Tensor* cache : {&keys, &values}) {
    ELA_CHECK(cache->rank() == 4 && cache->dense() && cache->dim(1) == keys.dim(1),
              "keys and values are not dense [B, C, H, D]");
    CheckShape("keys or values", *cache, sequences, keys.dim(1) * width);
  }
}

}  // namespace ela::kernels
