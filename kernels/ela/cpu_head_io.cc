// What of HeadPass moves numbers between tensors and its working memory.
#include <cmath>
#include <cstring>

#include "kernels/ela/cpu_head.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
void HeadPass::LoadRows(float* out, int64_t ld, const Tensor& x, int64_t columns) const {
  for (int64_t i = 0; i < end_ - begin_; ++i) {
    const int64_t at = RowAt(i) * x.stride() + head_ * columns;
    float* row = out + i * ld;
    if (IsFloat(x)) {
      std::memcpy(row, x.as<float>() + at, static_cast<size_t>(columns) * sizeof(float));
    } else {
      Widen(row, x.as<Bf16>() + at, columns);
    }
    std::fill(row + columns, row + ld, 0.0f);
  }
}

namespace {

/// Infinities become NaN, as NaN stays.
void Saturate(float* x, int64_t n) {
  constexpr float kLargest = static_cast<float>(kLargestElement);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float at = x[i];
    const float low = at < -kLargest ? -kLargest : at;
    x[i] = (low > kLargest ? kLargest : low) + (at - at);
  }
}

}  // namespace

// -lse and, for gradients, -delta = -(dy . y) of the loaded rows.
void HeadPass::LoadScales() {
  const int64_t n = end_ - begin_;
  if (tensors_.lse.empty()) return;
  const bool keys = tensors_.kind == PassKind::kKeyGradient;
  const float* dy = keys ? values_ : gradients_;
  float* extra = keys ? value_extra_ : grad_extra_;
  LoadRows(scaled_, padded_.values, tensors_.y, sizes_.dv);
  for (int64_t i = 0; i < n; ++i) {
    row_scale_[i] = -tensors_.lse.as<float>()[RowAt(i) * tensors_.lse.stride() + head_];
    extra[i] = -Dot(dy + i * padded_.values, scaled_ + i * padded_.values, sizes_.dv);
  }
}

void HeadPass::LoadWriters() {
  const int64_t n = end_ - begin_;
  const bool keys = tensors_.kind == PassKind::kKeyGradient;  // are read
  LoadRows(writer_x_, sizes_.d, keys ? tensors_.q : tensors_.k, sizes_.d);
  Saturate(writer_x_, n * sizes_.d);
  LoadRows(values_, padded_.values, keys ? tensors_.dy : tensors_.v, sizes_.dv);
  std::fill_n(value_extra_, n, 1.0f);
}

void HeadPass::LoadReaders() {
  const int64_t n = end_ - begin_;
  const bool keys = tensors_.kind == PassKind::kKeyGradient;
  LoadRows(reader_x_, sizes_.d, keys ? tensors_.k : tensors_.q, sizes_.d);
  Saturate(reader_x_, n * sizes_.d);
  if (tensors_.kind == PassKind::kForward) return;
  LoadRows(gradients_, padded_.values, keys ? tensors_.v : tensors_.dy, sizes_.dv);
  std::fill_n(grad_extra_, n, 1.0f);
}

namespace {

void StoreRow(const Tensor& y, int64_t row, int64_t head, int64_t columns, const float* x) {
  const int64_t at = row * y.stride() + head * columns;
  if (IsFloat(y)) {
    std::memcpy(y.as<float>() + at, x, static_cast<size_t>(columns) * sizeof(float));
  } else {
    Narrow(y.as<Bf16>() + at, x, columns);
  }
}

}  // namespace

void HeadPass::StoreOutputs(Range r) {
  const int64_t v = padded_.values;
  for (int64_t i = r.begin; i < r.end; ++i) {
    const int64_t row = RowAt(i);
    float* sums = sums_ + i * v;
    if (tensors_.kind == PassKind::kForward) {
      const float reciprocal = 1.0f / den_[i];
      for (int64_t e = 0; e < sizes_.dv; ++e) sums[e] *= reciprocal;
      StoreRow(tensors_.out, row, head_, sizes_.dv, sums);
      tensors_.out_lse.as<float>()[row * tensors_.out_lse.stride() + head_] =
          std::log(den_[i]) - row_scale_[i];
      continue;
    }
    StoreRow(tensors_.out, row, head_, sizes_.d, dx_ + i * sizes_.d);
    if (tensors_.kind == PassKind::kKeyGradient) {
      StoreRow(tensors_.dv, row, head_, sizes_.dv, sums);
    }
  }
}

void HeadPass::Load(float* out, const float* head) const {
  const StateView<float> from = ViewState(const_cast<float*>(head), sizes_);
  const StateView<float> to = padded_.View(out);
  Clear(out);
  *to.count = *from.count;
  std::copy_n(from.gauge, sizes_.gauge, to.gauge);
  std::copy_n(from.norm, sizes_.features, to.norm);
  for (int64_t f = 0; f < sizes_.features; ++f) {
    std::copy_n(from.sums + f * from.ld, sizes_.dv, to.sums + f * to.ld);
  }
}

void HeadPass::Store(float* head, const float* state) const {
  const StateView<float> from = padded_.View(const_cast<float*>(state));
  const StateView<float> to = ViewState(head, sizes_);
  *to.count = *from.count;
  std::copy_n(from.gauge, sizes_.gauge, to.gauge);
  std::copy_n(from.norm, sizes_.features, to.norm);
  for (int64_t f = 0; f < sizes_.features; ++f) {
    std::copy_n(from.sums + f * from.ld, sizes_.dv, to.sums + f * to.ld);
  }
}

}  // namespace ela::kernels::cpu
