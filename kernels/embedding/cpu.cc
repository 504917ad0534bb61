// x, dx and table are float or bf16; dtable is float.
#include "kernels/embedding/embedding.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace ela::kernels::cpu {
namespace {

void CheckIds(const Tensor& ids, int64_t vocabulary) {
  for (int64_t t = 0; t < ids.dim(0); ++t) {
    const int32_t id = ids.as<int32_t>()[t];
    ELA_CHECK(id >= 0 && id < vocabulary, "token id %d at row %lld, vocabulary %lld", id,
              static_cast<long long>(t), static_cast<long long>(vocabulary));
  }
}

}  // namespace

void EmbeddingForward(const Context& ctx, Tensor x, Tensor ids, Tensor table) {
  const int64_t rows = ids.dim(0), d = table.row_numel();
  CheckShape("x", x, rows, d);
  CheckIds(ids, table.dim(0));
  const int32_t* id = ids.as<int32_t>();
  ArenaScope scope(ctx.scratch);
  const ThreadBuffers buffers(ctx, BufferFloats(table) + BufferFloats(x));
  ParallelBlocks(ctx, rows, RowsPerBlock(d), [&](int64_t begin, int64_t end) {
    float* table_buffer = buffers.Get();
    float* x_buffer = table_buffer + BufferFloats(table);
    for (int64_t t = begin; t < end; ++t) {
      const float* in = ReadRow(table, id[t], table_buffer);
      float* out = RowTarget(x, t, x_buffer);
      std::copy(in, in + d, out);
      WriteRow(x, t, out);
    }
  });
}

// Threads share the columns, so each row of the table gets its tokens in order.
void EmbeddingBackward(const Context& ctx, Tensor dtable, Tensor dx, Tensor ids) {
  const int64_t rows = ids.dim(0), d = dtable.row_numel();
  CheckShape("dx", dx, rows, d);
  CheckIds(ids, dtable.dim(0));
  constexpr int64_t kColumns = 64;
  ParallelBlocks(ctx, d, kColumns, [&](int64_t begin, int64_t end) {
    float buffer[kColumns];
    for (int64_t t = 0; t < rows; ++t) {
      const float* in = ReadFloats(dx, t * dx.stride() + begin, end - begin, buffer);
      float* out = dtable.as<float>() + ids.as<int32_t>()[t] * dtable.stride() + begin;
      for (int64_t i = 0; i < end - begin; ++i) out[i] += in[i];
    }
  });
}

}  // namespace ela::kernels::cpu
