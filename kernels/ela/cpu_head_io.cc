// What of HeadPass moves numbers between tensors and its working memory.
#include <cmath>
#include <cstring>
#include <numbers>

#include "kernels/ela/cpu_head.h"
#include "kernels/rows.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

/// Elements of queries and keys; infinities become NaN, as NaN stays.
inline float Saturated(float x) {
  constexpr float kLargest = static_cast<float>(kLargestElement);
  const float low = x < -kLargest ? -kLargest : x;
  return (low > kLargest ? kLargest : low) + (x - x);
}

}  // namespace

void HeadPass::LoadRows(float* out, int64_t ld, const Tensor& x, int64_t columns) const {
  for (int64_t i = 0; i < end_ - begin_; ++i) {
    const int64_t at = RowAt(i) * x.stride() + head_ * columns;
    float* row = out + i * ld;
    if (IsFloat(x)) {
      std::memcpy(row, x.as<float>() + at, static_cast<size_t>(columns) * sizeof(float));
    } else {
      Widen(row, x.as<Bf16>() + at, columns);
    }
    for (int64_t e = columns; e < ld; ++e) row[e] = 0.0f;
  }
}

void HeadPass::LoadPoints(float* out, const Tensor& x) const {
  const int64_t d = sizes_.d;
  for (int64_t i = 0; i < end_ - begin_; ++i) {
    const int64_t at = RowAt(i) * x.stride() + head_ * d;
    float* row = out + i * d;
    const float* from = ReadFloats(x, at, d, row);
#pragma omp simd
    for (int64_t f = 0; f < d; ++f) row[f] = Saturated(from[f]);
  }
}

// The same rows of the next head; after the last head the next rows of the first.
void HeadPass::Prefetch(const Tensor& x, int64_t columns) const {
  if (x.empty()) return;
  int64_t begin = begin_, end = end_, head = head_ + 1;
  if (index_ + 1 == num_heads_) {
    head = first_head_;
    begin = tensors_.reverse() ? std::max<int64_t>(0, begin_ - kChunk) : end_;
    end = tensors_.reverse() ? begin_ : std::min(x.dim(0), end_ + kChunk);
  }
  const auto element = static_cast<int64_t>(SizeOf(x.dtype()));
  const char* base = static_cast<const char*>(x.data()) + head * columns * element;
  constexpr int64_t kLine = 64;
  for (int64_t row = begin; row < end; ++row) {
    const char* at = base + row * x.stride() * element;
    for (int64_t byte = 0; byte < columns * element; byte += kLine) __builtin_prefetch(at + byte);
  }
}

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
  LoadPoints(writer_x_, keys ? tensors_.q : tensors_.k);
  LoadRows(values_, padded_.values, keys ? tensors_.dy : tensors_.v, sizes_.dv);
  std::fill_n(value_extra_, n, 1.0f);
}

void HeadPass::LoadReaders() {
  const int64_t n = end_ - begin_;
  const bool keys = tensors_.kind == PassKind::kKeyGradient;
  LoadPoints(reader_x_, keys ? tensors_.k : tensors_.q);
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
          std::log(den_[i]) - row_scale_[i] * std::numbers::ln2_v<float>;
      continue;
    }
    StoreRow(tensors_.out, row, head_, sizes_.d, dx_ + i * sizes_.d);
    if (tensors_.kind == PassKind::kKeyGradient) {
      StoreRow(tensors_.dv, row, head_, sizes_.dv, sums);
    }
  }
}

namespace {

void CopyState(const StateSizes& sizes, const StateView<float>& to, const StateView<float>& from) {
  *to.count = *from.count;
  std::copy_n(from.gauge, sizes.gauge, to.gauge);
  std::copy_n(from.norm, sizes.features, to.norm);
  for (int64_t f = 0; f < sizes.features; ++f) {
    std::copy_n(from.sums + f * from.ld, sizes.dv, to.sums + f * to.ld);
  }
}

}  // namespace

void HeadPass::Load(float* out, const float* sequence_state) const {
  Clear(out);
  const int64_t size = HeadStateSize(sizes_);
  for (int64_t i = 0; i < num_heads_; ++i) {
    float* head = const_cast<float*>(sequence_state) + (first_head_ + i) * size;
    CopyState(sizes_, padded_.View(out + i * padded_.floats()), ViewState(head, sizes_));
  }
}

void HeadPass::Store(float* sequence_state, const float* state) const {
  const int64_t size = HeadStateSize(sizes_);
  for (int64_t i = 0; i < num_heads_; ++i) {
    float* from = const_cast<float*>(state) + i * padded_.floats();
    CopyState(sizes_, ViewState(sequence_state + (first_head_ + i) * size, sizes_),
              padded_.View(from));
  }
}

}  // namespace ela::kernels::cpu
