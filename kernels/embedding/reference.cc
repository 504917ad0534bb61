#include "kernels/embedding/embedding.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {

void EmbeddingForward(const Context& ctx, Tensor x_out, Tensor ids, Tensor table_in) {
  const Matrix table(table_in);
  Matrix x(ids.dim(0), table.columns());
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t i = 0; i < x.columns(); ++i) x(t, i) = table(ids.as<int32_t>()[t], i);
  }
  x.StoreTo(x_out);
}

void EmbeddingBackward(const Context& ctx, Tensor dtable_out, Tensor dx_in, Tensor ids) {
  const Matrix dx(dx_in);
  Matrix dtable(dtable_out.dim(0), dtable_out.row_numel());
  for (int64_t t = 0; t < dx.rows(); ++t) {
    for (int64_t i = 0; i < dx.columns(); ++i) dtable(ids.as<int32_t>()[t], i) += dx(t, i);
  }
  dtable.AddTo(dtable_out);
}

}  // namespace ela::kernels::reference
