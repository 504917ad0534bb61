#include "kernels/label_bias/label_bias.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {
namespace {

/// visit(row, expert) for every row.
template <class Visit>
void ForEachRow(const std::vector<int64_t>& offsets, const Visit& visit) {
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) visit(r, static_cast<int64_t>(e));
  }
}

Matrix LabelsOrZero(const Tensor& labels, const std::vector<int64_t>& offsets, int64_t d) {
  if (!labels.empty()) return Matrix(labels);
  return Matrix(static_cast<int64_t>(offsets.size()) - 1, d);
}

}  // namespace

void LabelBiasForward(const Context& ctx, Tensor y_out, Tensor f_in, Tensor w_in, Tensor labels_in,
                      const std::vector<int64_t>& offsets, LabelBias bias) {
  const Matrix f(f_in), w(w_in), labels = LabelsOrZero(labels_in, offsets, f.columns());
  Matrix y(f.rows(), f.columns());
  ForEachRow(offsets, [&](int64_t r, int64_t e) {
    for (int64_t i = 0; i < f.columns(); ++i) {
      switch (bias) {
        case LabelBias::kNone:
          y(r, i) = w(r, 0) * f(r, i);
          break;
        case LabelBias::kInner:
          y(r, i) = w(r, 0) * (f(r, i) + labels(e, i));
          break;
        case LabelBias::kOuter:
          y(r, i) = w(r, 0) * f(r, i) + labels(e, i);
          break;
      }
    }
  });
  y.StoreTo(y_out);
}

void LabelBiasBackward(const Context& ctx, Tensor df_out, Tensor dw_out, Tensor dlabels_out,
                       Tensor dy_in, Tensor f_in, Tensor w_in, Tensor labels_in,
                       const std::vector<int64_t>& offsets, LabelBias bias) {
  const Matrix dy(dy_in), f(f_in), w(w_in), labels = LabelsOrZero(labels_in, offsets, f.columns());
  Matrix df(f.rows(), f.columns()), dw(f.rows(), 1), dlabels(labels.rows(), f.columns());
  ForEachRow(offsets, [&](int64_t r, int64_t e) {
    for (int64_t i = 0; i < f.columns(); ++i) {
      df(r, i) = w(r, 0) * dy(r, i);
      dw(r, 0) += dy(r, i) * (bias == LabelBias::kInner ? f(r, i) + labels(e, i) : f(r, i));
      dlabels(e, i) += dy(r, i) * (bias == LabelBias::kInner ? w(r, 0) : 1);
    }
  });
  df.StoreTo(df_out);
  dw.StoreTo(dw_out);
  if (bias != LabelBias::kNone) dlabels.AddTo(dlabels_out);
}

}  // namespace ela::kernels::reference
