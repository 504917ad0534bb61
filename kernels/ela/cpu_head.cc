#include "kernels/ela/cpu_head.h"

#include <cmath>

#include "kernels/ela/small_matmul.h"
#include "kernels/vector_math.h"

namespace ela::kernels::cpu {
namespace {

int64_t Pad(int64_t n) { return (n + 7) / 8 * 8; }

}  // namespace

PaddedState::PaddedState(const StateSizes& sizes)
    : gauge(Pad(sizes.gauge)), features(Pad(sizes.features)), values(Pad(sizes.dv)) {}

int64_t HeadPass::WorkFloats(const ElaConfig& config) {
  const StateSizes sizes = StateSizesOf(config);
  const PaddedState p(sizes);
  const int64_t rows = 3 * sizes.d + 7 * p.values + 5 * p.features + kChunk + 4;
  return kChunk * rows + p.values * p.features + p.gauge + 2 * p.floats();
}

HeadPass::HeadPass(const Context& ctx, const ElaConfig& config, const PassTensors& tensors,
                   int64_t first_head, int64_t num_heads, float* memory)
    : ctx_(ctx),
      math_(MathOf<float>(config)),
      tensors_(tensors),
      sizes_(StateSizesOf(config)),
      padded_(sizes_),
      first_head_(first_head),
      num_heads_(num_heads),
      log_decays_(static_cast<size_t>(num_heads)),
      decays_(static_cast<size_t>(num_heads)) {
  for (size_t i = 0; i < decays_.size(); ++i) {
    const double log_decay = LogDecayOf(config, first_head + static_cast<int64_t>(i));
    log_decays_[i] = static_cast<float>(log_decay);
    for (size_t t = 0; t < decays_[i].size(); ++t) {
      decays_[i][t] = static_cast<float>(std::exp(log_decay * static_cast<double>(t)));
    }
  }
  const auto take = [&](float** buffer, int64_t floats) {
    *buffer = memory;
    memory += floats;
  };
  const int64_t f = padded_.features, v = padded_.values;
  for (float** x : {&reader_x_, &writer_x_, &dx_}) take(x, kChunk * sizes_.d);
  for (float** x : {&values_, &gradients_, &sums_, &scaled_}) take(x, kChunk * v);
  for (float** x : {&reads_, &reads_before_, &writes_, &dreads_}) take(x, kChunk * f);
  for (float** x : {&value_extra_, &grad_extra_, &row_scale_, &den_}) take(x, kChunk);
  take(&writes_t_, f * kChunk);
  take(&values_t_, v * kChunk);
  take(&weights_, kChunk * kChunk);
  take(&state_t_, v * f);
  take(&gauge_, padded_.gauge);
  take(&so_far_, padded_.floats());
  take(&part_, padded_.floats());
  if (f != sizes_.features) {  // their padding stays 0
    for (float* x : {reads_, reads_before_, writes_}) std::fill_n(x, kChunk * f, 0.0f);
  }
}

HeadPass::Rows HeadPass::Writers(Range r) const {
  const bool keys = tensors_.kind == PassKind::kKeyGradient;
  return {keys ? Side::kQuery : Side::kKey,
          writer_x_ + r.begin * sizes_.d,
          keys ? row_scale_ + r.begin : nullptr,
          r.n(),
          sizes_.d,
          nullptr};
}

HeadPass::Rows HeadPass::Readers(Range r) const {
  Rows rows{Side::kQuery, reader_x_ + r.begin * sizes_.d, nullptr, r.n(), sizes_.d};
  switch (tensors_.kind) {
    case PassKind::kForward:
      rows.log2_scale = row_scale_ + r.begin;
      break;
    case PassKind::kQueryGradient:
      rows.log_scale = row_scale_ + r.begin;
      break;
    case PassKind::kKeyGradient:
      rows.side = Side::kKey;
      break;
  }
  return rows;
}

void HeadPass::SetHead(int64_t index) {
  index_ = index;
  head_ = first_head_ + index;
  log_decay_ = log_decays_[static_cast<size_t>(index)];
  decay_ = decays_[static_cast<size_t>(index)].data();
}

void HeadPass::Write(float* out, int64_t begin, int64_t end) {
  begin_ = begin;
  end_ = end;
  for (int64_t i = 0; i < num_heads_; ++i) {
    SetHead(i);
    LoadWriters();
    LoadScales();
    WriteFeatures({0, end - begin});
    SumWrites(HeadState(out), {0, end - begin});
  }
}

void HeadPass::Run(float* out, const float* before, int64_t begin, int64_t end) {
  begin_ = begin;
  end_ = end;
  for (int64_t i = 0; i < num_heads_; ++i) {
    SetHead(i);
    RunHead(out == nullptr ? nullptr : HeadState(out), HeadState(before));
  }
}

void HeadPass::RunHead(float* out, const float* before) {
  if (before != nullptr && *before == 0) before = nullptr;
  LoadWriters();
  LoadReaders();
  LoadScales();
  const Range all{0, end_ - begin_};
  Prefetch(tensors_.q, sizes_.d);
  Prefetch(tensors_.k, sizes_.d);
  WriteFeatures(all);
  Prefetch(tensors_.v, sizes_.dv);
  Prefetch(tensors_.dy, sizes_.dv);
  if (out != nullptr) SumWrites(out, all);
  Prefetch(tensors_.y, sizes_.dv);
  if (GoodRows(before, all) < all.n()) {
    ++ctx_.counters->slow_path_chunks;
    RunSplit(before);
  } else {
    RunRange(before, all);
  }
}

void HeadPass::Read(const float* state, int64_t begin, int64_t end) {
  begin_ = begin;
  end_ = end;
  for (int64_t i = 0; i < num_heads_; ++i) {
    SetHead(i);
    ReadHead(HeadState(state));
  }
}

void HeadPass::ReadHead(const float* state) {
  const Range all{0, end_ - begin_};
  const float* gauge = padded_.View(const_cast<float*>(state)).gauge;
  LoadReaders();
  // Only the reading side's part of the scales is of use: queries' log-denominators and deltas.
  if (tensors_.kind == PassKind::kQueryGradient) LoadScales();
  if (tensors_.kind == PassKind::kForward) {
    math_.ReadScale(row_scale_, Readers(all), gauge, nullptr);
  }
  std::fill_n(dx_, all.n() * sizes_.d, 0.0f);
  math_.Read(reads_before_, padded_.features, Readers(all), gauge);
  ReadBefore(state, all, /*fades=*/false);
  StoreOutputs(all);
}

void HeadPass::WriteFeatures(Range r) {
  const int64_t f = padded_.features;
  const Rows writers = Writers(r);
  math_.ChooseGauge(gauge_, writers);
  math_.Write(writes_, f, writers, gauge_);
  Transpose(writes_t_, kChunk, writes_, f, r.n(), f);
}

void HeadPass::SumWrites(float* out, Range r) {
  const StateView<float> state = padded_.View(out);
  const int64_t v = padded_.values, n = r.n();
  const float* values = values_ + r.begin * v;
  const float* extra = value_extra_ + r.begin;
  if (log_decay_ != 0) {  // each row as far as decay leaves of it at the last one
    for (int64_t i = 0; i < n; ++i) {
      const float decay = decay_[n - 1 - i];
      for (int64_t e = 0; e < v; ++e) scaled_[i * v + e] = decay * values[i * v + e];
      den_[i] = decay * extra[i];
    }
    values = scaled_;
    extra = den_;
  }
  std::fill_n(out, PaddedState::kHeader, 0.0f);
  *state.count = static_cast<float>(n);
  std::copy_n(gauge_, padded_.gauge, state.gauge);
  MatMul(state.sums, v, writes_t_, kChunk, values, v, padded_.features, v, n, false);
  for (int64_t f = 0; f < padded_.features; ++f) {
    state.norm[f] = Dot(writes_t_ + f * kChunk, extra, n);
  }
}

// Forward, no row's part depends on later ones.
int64_t HeadPass::GoodRows(const float* before, Range r) {
  if (r.n() <= 1) return r.n();
  if (tensors_.kind != PassKind::kForward) {
    return math_.ReadsTooLarge(Readers(r), gauge_) ? (r.n() + 1) / 2 : r.n();
  }
  const float* gauge = before == nullptr ? nullptr : padded_.View(const_cast<float*>(before)).gauge;
  return math_.RowsOfOneGauge(Writers(r), gauge, log_decay_);
}

// Parts until each is good, down to single rows; what the earlier ones write is what the later ones
// have before them.
void HeadPass::RunSplit(const float* before) {
  *so_far_ = 0;
  if (before != nullptr) std::copy_n(before, padded_.floats(), so_far_);
  std::array<Range, 8> todo;
  size_t count = 0;
  todo[count++] = {0, end_ - begin_};
  while (count > 0) {
    const Range r = todo[--count];
    const float* seen = so_far_[0] == 0 ? nullptr : so_far_;
    WriteFeatures(r);
    if (const int64_t middle = r.begin + GoodRows(seen, r); middle < r.end) {
      todo[count++] = {middle, r.end};
      todo[count++] = {r.begin, middle};
      continue;
    }
    RunRange(seen, r);
    SumWrites(part_, r);
    FoldHead(so_far_, part_, log_decay_);
  }
}

void HeadPass::RunRange(const float* before, Range r) {
  const int64_t f = padded_.features;
  const Rows readers = Readers(r);
  const float* gauge = before == nullptr ? nullptr : padded_.View(const_cast<float*>(before)).gauge;
  if (tensors_.kind == PassKind::kForward) {
    math_.ReadScale(row_scale_ + r.begin, readers, gauge_, gauge);
  }
  std::fill_n(dx_ + r.begin * sizes_.d, r.n() * sizes_.d, 0.0f);
  if (before != nullptr) {
    math_.ReadTwo(reads_, reads_before_, f, readers, gauge_, gauge);
    ReadBefore(before, r, /*fades=*/true);
  } else {
    math_.Read(reads_, f, readers, gauge_);
    std::fill_n(sums_ + r.begin * padded_.values, r.n() * padded_.values, 0.0f);
    std::fill_n(den_ + r.begin, r.n(), 0.0f);
  }
  ReadChunk(r);
  StoreOutputs(r);
}

// What a state contributes; if it fades, by decay up to each row.
void HeadPass::ReadBefore(const float* before, Range r, bool fades) {
  const StateView<float> state = padded_.View(const_cast<float*>(before));
  const int64_t f = padded_.features, v = padded_.values, n = r.n();
  const auto decay = [&](int64_t i) { return fades ? decay_[static_cast<size_t>(i + 1)] : 1.0f; };
  if (tensors_.kind != PassKind::kQueryGradient) {
    float* sums = sums_ + r.begin * v;
    MatMul(sums, v, reads_before_, f, state.sums, v, n, v, f, false);
    for (int64_t i = 0; i < n; ++i) {
      den_[r.begin + i] = decay(i) * Dot(reads_before_ + i * f, state.norm, f);
      for (int64_t e = 0; e < v; ++e) sums[i * v + e] *= decay(i);
    }
  }
  if (tensors_.kind == PassKind::kForward) return;
  Transpose(state_t_, f, state.sums, v, f, v);
  MatMul(dreads_, f, gradients_ + r.begin * v, v, state_t_, f, n, f, v, false);
  for (int64_t i = 0; i < n; ++i) {
    float* row = dreads_ + i * f;
    const float extra = grad_extra_[r.begin + i], fade = decay(i);
    for (int64_t c = 0; c < f; ++c) row[c] = fade * (row[c] + extra * state.norm[c]);
  }
  math_.AddReadGradient(dx_ + r.begin * sizes_.d, dreads_, reads_before_, f, Readers(r),
                        state.gauge);
}

// What rows of the chunk contribute to each other, 16 reading rows at a time.
void HeadPass::ReadChunk(Range r) {
  constexpr int64_t kRows = 16;
  const int64_t f = padded_.features, v = padded_.values, n = r.n();
  if (tensors_.kind != PassKind::kForward) {
    Transpose(values_t_, kChunk, values_ + r.begin * v, v, n, v);
  }
  const bool sums = tensors_.kind != PassKind::kQueryGradient;
  const bool direct = sums && math_.Weights(weights_, kChunk, Readers(r), Writers(r));
  for (int64_t first = 0; sums && first < n; first += kRows) {
    const int64_t last = std::min(n, first + kRows);
    float* weights = weights_ + first * kChunk;
    if (!direct) {
      MatMul(weights, kChunk, reads_ + first * f, f, writes_t_, kChunk, last - first, Pad(last), f,
             false);
    }
    Mask(weights, first, last);
    MatMul(sums_ + (r.begin + first) * v, v, weights, kChunk, values_ + r.begin * v, v,
           last - first, v, last, true);
    for (int64_t i = first; i < last; ++i) {
      den_[r.begin + i] += Dot(weights_ + i * kChunk, value_extra_ + r.begin, i + 1);
    }
  }
  if (tensors_.kind == PassKind::kForward) return;
  for (int64_t first = 0; first < n; first += kRows) {
    ReadRows(r, first, std::min(n, first + kRows));
  }
  math_.AddReadGradient(dx_ + r.begin * sizes_.d, dreads_, reads_, f, Readers(r), gauge_);
}

// Gradients of the features of reading rows [first, last) of r.
void HeadPass::ReadRows(Range r, int64_t first, int64_t last) {
  const int64_t f = padded_.features, v = padded_.values;
  float* weights = weights_ + first * kChunk;
  MatMul(weights, kChunk, gradients_ + (r.begin + first) * v, v, values_t_, kChunk, last - first,
         Pad(last), v, false);
  for (int64_t i = first; i < last; ++i) {
    const float extra = grad_extra_[r.begin + i];
    for (int64_t j = 0; j < last; ++j) {
      weights_[i * kChunk + j] += extra * value_extra_[r.begin + j];
    }
  }
  Mask(weights, first, last);
  MatMul(dreads_ + first * f, f, weights, kChunk, writes_, f, last - first, f, last, false);
}

/// weights [last - first][kChunk] of reading rows [first, last): those of later rows become 0, the
/// others fade with distance.
void HeadPass::Mask(float* weights, int64_t first, int64_t last) const {
  for (int64_t i = first; i < last; ++i) {
    float* row = weights + (i - first) * kChunk;
    std::fill(row + i + 1, row + Pad(last), 0.0f);
    if (log_decay_ == 0) continue;
    for (int64_t j = 0; j <= i; ++j) row[j] *= decay_[static_cast<size_t>(i - j)];
  }
}

void HeadPass::Fold(float* acc, const float* later) const {
  for (int64_t i = 0; i < num_heads_; ++i) {
    FoldHead(acc + i * padded_.floats(), later + i * padded_.floats(),
             log_decays_[static_cast<size_t>(i)]);
  }
}

void HeadPass::FoldHead(float* acc, const float* later, float log_decay) const {
  const StateView<float> to = padded_.View(acc), from = padded_.View(const_cast<float*>(later));
  if (*from.count == 0) return;
  if (*to.count == 0) {
    std::copy_n(later, padded_.floats(), acc);
  } else {
    math_.Fold(sizes_, to, from, log_decay);
  }
}

}  // namespace ela::kernels::cpu
