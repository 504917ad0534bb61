// y, f, df, dy and labels are float or bf16, each on its own; w, dw and dlabels are float.
#include "kernels/label_bias/label_bias.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

void CheckShapes(const Tensor& f, const Tensor& w, const Tensor& labels,
                 const std::vector<int64_t>& offsets, LabelBias bias) {
  CheckShape("w", w, f.dim(0), 1);
  ELA_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == f.dim(0),
            "offsets do not span %lld rows", static_cast<long long>(f.dim(0)));
  if (bias == LabelBias::kNone) return;
  CheckShape("labels", labels, static_cast<int64_t>(offsets.size()) - 1, f.row_numel());
}

/// body(begin, end, expert) for runs of at most `block` rows of one expert.
template <class Body>
void ForEachRun(const Context& ctx, const std::vector<int64_t>& offsets, int64_t block,
                const Body& body) {
  ParallelBlocks(ctx, offsets.back(), block, [&](int64_t begin, int64_t end) {
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      const int64_t first = std::max(begin, offsets[e]), last = std::min(end, offsets[e + 1]);
      if (first < last) body(first, last, static_cast<int64_t>(e));
    }
  });
}

/// dlabels of each expert: its rows in order; threads share the columns and the experts.
void AddLabelGradients(const Context& ctx, const Tensor& dlabels, const Tensor& dy, const Tensor& w,
                       const std::vector<int64_t>& offsets, LabelBias bias) {
  constexpr int64_t kColumns = 64;
  const int64_t experts = static_cast<int64_t>(offsets.size()) - 1, d = dy.row_numel();
  CheckShape("dlabels", dlabels, experts, d);
  const float* weight = w.as<float>();
  const int64_t blocks = (d + kColumns - 1) / kColumns;
  ParallelFor(ctx, experts * blocks, [&](int64_t task) {
    const size_t e = static_cast<size_t>(task / blocks);
    const int64_t column = task % blocks * kColumns, n = std::min(kColumns, d - column);
    float buffer[kColumns];
    float* out = dlabels.as<float>() + task / blocks * dlabels.stride() + column;
    for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
      const float* grad = ReadFloats(dy, r * dy.stride() + column, n, buffer);
      const float factor = bias == LabelBias::kInner ? weight[r] : 1.0f;
      for (int64_t i = 0; i < n; ++i) out[i] += factor * grad[i];
    }
  });
}

}  // namespace

void LabelBiasForward(const Context& ctx, Tensor y, Tensor f, Tensor w, Tensor labels,
                      const std::vector<int64_t>& offsets, LabelBias bias) {
  const int64_t d = f.row_numel();
  CheckShape("y", y, f.dim(0), d);
  CheckShapes(f, w, labels, offsets, bias);
  if (f.dim(0) == 0) return;
  ArenaScope scope(ctx.scratch);
  const Tensor wide_labels = bias == LabelBias::kNone ? Tensor() : Widened(ctx, labels);
  const float* weight = w.as<float>();
  const ThreadBuffers buffers(ctx, BufferFloats(f) + BufferFloats(y));
  ForEachRun(ctx, offsets, RowsPerBlock(d), [&](int64_t begin, int64_t end, int64_t e) {
    float* f_buffer = buffers.Get();
    float* y_buffer = f_buffer + BufferFloats(f);
    for (int64_t r = begin; r < end; ++r) {
      const float* in = ReadRow(f, r, f_buffer);
      float* out = RowTarget(y, r, y_buffer);
      if (bias == LabelBias::kNone) {
        for (int64_t i = 0; i < d; ++i) out[i] = weight[r] * in[i];
      } else {
        const float* label = wide_labels.as<float>() + e * wide_labels.stride();
        const float factor = bias == LabelBias::kInner ? weight[r] : 1.0f;
        for (int64_t i = 0; i < d; ++i) out[i] = weight[r] * in[i] + factor * label[i];
      }
      WriteRow(y, r, out);
    }
  });
}

void LabelBiasBackward(const Context& ctx, Tensor df, Tensor dw, Tensor dlabels, Tensor dy,
                       Tensor f, Tensor w, Tensor labels, const std::vector<int64_t>& offsets,
                       LabelBias bias) {
  const int64_t d = f.row_numel();
  CheckShape("df", df, f.dim(0), d);
  CheckShape("dy", dy, f.dim(0), d);
  CheckShape("dw", dw, f.dim(0), 1);
  CheckShapes(f, w, labels, offsets, bias);
  if (f.dim(0) == 0) return;
  ArenaScope scope(ctx.scratch);
  if (bias != LabelBias::kNone) AddLabelGradients(ctx, dlabels, dy, w, offsets, bias);
  const Tensor wide_labels = bias == LabelBias::kInner ? Widened(ctx, labels) : Tensor();
  const float* weight = w.as<float>();
  const ThreadBuffers buffers(ctx, BufferFloats(f) + BufferFloats(dy) + BufferFloats(df));
  ForEachRun(ctx, offsets, RowsPerBlock(d), [&](int64_t begin, int64_t end, int64_t e) {
    float* f_buffer = buffers.Get();
    float* dy_buffer = f_buffer + BufferFloats(f);
    float* df_buffer = dy_buffer + BufferFloats(dy);
    for (int64_t r = begin; r < end; ++r) {
      const float* in = ReadRow(f, r, f_buffer);
      const float* grad = ReadRow(dy, r, dy_buffer);
      float* out = RowTarget(df, r, df_buffer);
      float weight_gradient = Dot(grad, in, d);
      if (bias == LabelBias::kInner) {
        weight_gradient += Dot(grad, wide_labels.as<float>() + e * wide_labels.stride(), d);
      }
      dw.as<float>()[r] = weight_gradient;
      for (int64_t i = 0; i < d; ++i) out[i] = weight[r] * grad[i];
      WriteRow(df, r, out);
    }
  });
}

}  // namespace ela::kernels::cpu
