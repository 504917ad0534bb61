// Token by token, in double. What is written to a state and read from it is feature_map.h's.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

#include "kernels/ela/feature_map.h"
#include "kernels/ela/state.h"
#include "kernels/matrix.h"

namespace ela::kernels::reference {
namespace {

/// The state of one head, and scratch for one token.
class HeadState {
 public:
  HeadState(const ElaConfig& config, int64_t head)
      : math_(MathOf<double>(config)),
        sizes_(StateSizesOf(config)),
        log_decay_(LogDecayOf(config, head)),
        memory_(static_cast<size_t>(HeadStateSize(sizes_))),
        token_(memory_.size()),
        view_(ViewState(memory_.data(), sizes_)),
        features_(static_cast<size_t>(sizes_.features)),
        gradient_(features_.size()) {}

  bool empty() const { return *view_.count == 0; }
  double norm(size_t f) const { return view_.norm[f]; }
  double sum(size_t f, int64_t e) const {
    return view_.sums[static_cast<int64_t>(f) * sizes_.dv + e];
  }

  /// This = this (+) later, `later` being a head of a state tensor.
  void Fold(double* later) {
    const StateView<double> other = ViewState(later, sizes_);
    if (*other.count == 0) return;
    if (empty()) {
      std::copy_n(later, memory_.size(), memory_.begin());
    } else {
      math_.Fold(sizes_, view_, other, log_decay_);
    }
  }

  /// Adds the features of one row times [values, extra].
  void Absorb(const FeatureRows<double>& row, const double* values, double extra) {
    const StateView<double> token = ViewState(token_.data(), sizes_);
    *token.count = 1;
    math_.ChooseGauge(token.gauge, row);
    math_.Write(token.norm, sizes_.features, row, token.gauge);
    for (int64_t f = 0; f < sizes_.features; ++f) {
      for (int64_t e = 0; e < sizes_.dv; ++e)
        token.sums[f * sizes_.dv + e] = token.norm[f] * values[e];
      token.norm[f] *= extra;
    }
    Fold(token_.data());
  }

  double ReadScale(const FeatureRows<double>& query) const {
    double log2_scale = 0;
    math_.ReadScale(&log2_scale, query, view_.gauge, nullptr);
    return log2_scale;
  }

  /// out [Dv] = the row's features times the sums; returns their product with the norm.
  double Read(double* out, const FeatureRows<double>& row) {
    math_.Read(features_.data(), sizes_.features, row, view_.gauge);
    std::fill_n(out, sizes_.dv, 0.0);
    double norm_product = 0;
    for (size_t f = 0; f < features_.size(); ++f) {
      norm_product += features_[f] * norm(f);
      for (int64_t e = 0; e < sizes_.dv; ++e) out[e] += features_[f] * sum(f, e);
    }
    return norm_product;
  }

  /// dx [D] = the gradient, with respect to the row, of what it reads times [values, extra].
  void ReadGradient(double* dx, const FeatureRows<double>& row, const double* values,
                    double extra) {
    math_.Read(features_.data(), sizes_.features, row, view_.gauge);
    for (size_t f = 0; f < features_.size(); ++f) {
      gradient_[f] = extra * norm(f);
      for (int64_t e = 0; e < sizes_.dv; ++e) gradient_[f] += values[e] * sum(f, e);
    }
    std::fill_n(dx, sizes_.d, 0.0);
    math_.AddReadGradient(dx, gradient_.data(), features_.data(), sizes_.features, row,
                          view_.gauge);
  }

  void StoreTo(double* head) const { std::copy(memory_.begin(), memory_.end(), head); }

 private:
  const FeatureMath<double>& math_;
  StateSizes sizes_;
  double log_decay_;
  std::vector<double> memory_, token_;
  StateView<double> view_;
  std::vector<double> features_, gradient_;
};

double* HeadOf(const Tensor& state, const ElaConfig& config, int64_t sequence, int64_t head) {
  return state.as<double>() + sequence * state.stride() +
         head * HeadStateSize(StateSizesOf(config));
}

/// Rows of queries or keys with elements saturated; infinities become NaN, as NaN stays.
Matrix Saturated(const Tensor& x) {
  Matrix m(x);
  for (int64_t i = 0; i < m.rows(); ++i) {
    for (int64_t j = 0; j < m.columns(); ++j) {
      const double at = m(i, j);
      m(i, j) = std::clamp(at, -kLargestElement, kLargestElement) + (at - at);
    }
  }
  return m;
}

/// What one pass is made of: rows of one side are written to the state, then read by the other.
struct Pass {
  const ElaConfig& config;
  Tensor before, after;  // empty: the identity
  bool reverse = false;  // from the last row to the first
  std::function<void(HeadState&, int64_t token, int64_t head)> absorb;
  std::function<void(HeadState&, int64_t token, int64_t head)> read;

  void Run(const std::vector<SpanRange>& spans) const {
    for (const SpanRange& span : spans) {
      for (int64_t head = 0; head < config.num_heads; ++head) RunHead(span, head);
    }
  }

  void RunHead(const SpanRange& span, int64_t head) const {
    HeadState state(config, head);
    const bool from_before = span.first && !before.empty();
    const bool from_after = span.last && !after.empty();
    if (reverse ? from_after : from_before) {
      state.Fold(HeadOf(reverse ? after : before, config, span.sequence, head));
    }
    const int64_t n = span.end - span.begin;
    const auto at = [&](int64_t i) { return reverse ? span.end - 1 - i : span.begin + i; };
    if (config.causal) {
      for (int64_t i = 0; i < n; ++i) {
        absorb(state, at(i), head);
        read(state, at(i), head);
      }
      return;
    }
    for (int64_t i = 0; i < n; ++i) absorb(state, at(i), head);
    if (reverse ? from_before : from_after) {
      state.Fold(HeadOf(reverse ? before : after, config, span.sequence, head));
    }
    for (int64_t i = 0; i < n; ++i) read(state, at(i), head);
  }
};

FeatureRows<double> Row(Side side, Matrix& x, int64_t token, int64_t head, int64_t d,
                        const double* log_scale = nullptr) {
  return {side, &x(token, head * d), log_scale, 1, d, nullptr};
}

/// Sums of dy * y of each token and head [T, H].
Matrix Deltas(const Matrix& dy, const Matrix& y, const ElaConfig& config) {
  Matrix delta(y.rows(), config.num_heads);
  for (int64_t t = 0; t < y.rows(); ++t) {
    for (int64_t c = 0; c < y.columns(); ++c) delta(t, c / config.value_dim) += dy(t, c) * y(t, c);
  }
  return delta;
}

Matrix Negated(const Tensor& x) {
  Matrix m(x);
  for (int64_t i = 0; i < m.rows(); ++i) {
    for (int64_t j = 0; j < m.columns(); ++j) m(i, j) = -m(i, j);
  }
  return m;
}

/// The sums over a span of each sequence, written to `out`.
void StoreSums(const Pass& pass, const Tensor& out, const Spans& spans, SpanEdge edge) {
  for (const SpanRange& span : EdgeSpans(spans, edge)) {
    for (int64_t head = 0; head < pass.config.num_heads; ++head) {
      HeadState state(pass.config, head);
      for (int64_t i = span.begin; i < span.end; ++i) {
        pass.absorb(state, pass.reverse ? span.end - 1 - (i - span.begin) : i, head);
      }
      state.StoreTo(HeadOf(out, pass.config, span.sequence, head));
    }
  }
}

}  // namespace

void ElaStateIdentity(const Context&, Tensor state, const ElaConfig& config) {
  CheckState("state", state, config, state.dim(0), false);
  for (int64_t b = 0; b < state.dim(0); ++b) {
    std::fill_n(state.as<double>() + b * state.stride(), state.dim(1), 0.0);
  }
}

void ElaFold(const Context&, Tensor acc, Tensor later, const ElaConfig& config,
             const std::vector<uint8_t>& take, bool) {
  CheckState("later", later, config, acc.dim(0), false);
  for (int64_t b = 0; b < acc.dim(0); ++b) {
    if (!take.empty() && take[static_cast<size_t>(b)] == 0) continue;
    for (int64_t head = 0; head < config.num_heads; ++head) {
      HeadState state(config, head);
      state.Fold(HeadOf(acc, config, b, head));
      state.Fold(HeadOf(later, config, b, head));
      state.StoreTo(HeadOf(acc, config, b, head));
    }
  }
}

void ElaLocalState(const Context&, Tensor state, Tensor k_in, Tensor v_in, const ElaConfig& config,
                   const Spans& spans, SpanEdge edge) {
  CheckState("state", state, config, CheckEla(config, spans, k_in.dim(0)), false);
  Matrix k = Saturated(k_in), v(v_in);
  Pass pass{config};
  pass.absorb = [&](HeadState& s, int64_t t, int64_t h) {
    s.Absorb(Row(Side::kKey, k, t, h, config.head_dim), &v(t, h * config.value_dim), 1);
  };
  StoreSums(pass, state, spans, edge);
}

void ElaForward(const Context&, Tensor y_out, Tensor lse_out, Tensor q_in, Tensor k_in, Tensor v_in,
                Tensor before, Tensor after, const ElaConfig& config, const Spans& spans,
                Tensor /*segments*/) {
  const int64_t sequences = CheckEla(config, spans, q_in.dim(0));
  CheckState("before", before, config, sequences, true);
  CheckState("after", after, config, sequences, true);
  const int64_t d = config.head_dim, dv = config.value_dim;
  Matrix q = Saturated(q_in), k = Saturated(k_in), v(v_in);
  Matrix y(q.rows(), config.num_heads * dv), lse(q.rows(), config.num_heads);
  Pass pass{config, before, after};
  pass.absorb = [&](HeadState& s, int64_t t, int64_t h) {
    s.Absorb(Row(Side::kKey, k, t, h, d), &v(t, h * dv), 1);
  };
  pass.read = [&](HeadState& s, int64_t t, int64_t h) {
    FeatureRows<double> query = Row(Side::kQuery, q, t, h, d);
    const double log2_scale = s.ReadScale(query);
    query.log2_scale = &log2_scale;
    const double den = s.Read(&y(t, h * dv), query);
    for (int64_t e = 0; e < dv; ++e) y(t, h * dv + e) /= den;
    lse(t, h) = std::log(den) - log2_scale * std::numbers::ln2;
  };
  pass.Run(SpanRanges(spans));
  y.StoreTo(y_out);
  lse.StoreTo(lse_out);
}

void ElaLocalGradState(const Context&, Tensor gstate, Tensor dy_in, Tensor q_in, Tensor y_in,
                       Tensor lse_in, const ElaConfig& config, const Spans& spans, SpanEdge edge) {
  CheckState("gstate", gstate, config, CheckEla(config, spans, q_in.dim(0)), false);
  Matrix q = Saturated(q_in), dy(dy_in), y(y_in), scale = Negated(lse_in);
  const Matrix delta = Deltas(dy, y, config);
  Pass pass{config};
  pass.reverse = true;
  pass.absorb = [&](HeadState& s, int64_t t, int64_t h) {
    s.Absorb(Row(Side::kQuery, q, t, h, config.head_dim, &scale(t, h)),
             &dy(t, h * config.value_dim), -delta(t, h));
  };
  StoreSums(pass, gstate, spans, edge);
}

// dq reads the keys' sums with [dy, -delta]; dk and dv read the queries' sums with [v, 1].
void ElaBackward(const Context&, Tensor dq_out, Tensor dk_out, Tensor dv_out, Tensor dy_in,
                 Tensor q_in, Tensor k_in, Tensor v_in, Tensor y_in, Tensor lse_in, Tensor before,
                 Tensor after, Tensor gbefore, Tensor gafter, const ElaConfig& config,
                 const Spans& spans, Tensor /*segments*/) {
  const int64_t sequences = CheckEla(config, spans, q_in.dim(0));
  for (const Tensor& state : {before, after, gbefore, gafter}) {
    CheckState("state", state, config, sequences, true);
  }
  const int64_t d = config.head_dim, dv = config.value_dim, heads = config.num_heads;
  Matrix q = Saturated(q_in), k = Saturated(k_in), v(v_in), dy(dy_in), y(y_in);
  Matrix scale = Negated(lse_in);
  const Matrix delta = Deltas(dy, y, config);
  Matrix dq(q.rows(), heads * d), dk(q.rows(), heads * d), dvalue(q.rows(), heads * dv);
  Pass keys{config, before, after};
  keys.absorb = [&](HeadState& s, int64_t t, int64_t h) {
    s.Absorb(Row(Side::kKey, k, t, h, d), &v(t, h * dv), 1);
  };
  keys.read = [&](HeadState& s, int64_t t, int64_t h) {
    s.ReadGradient(&dq(t, h * d), Row(Side::kQuery, q, t, h, d, &scale(t, h)), &dy(t, h * dv),
                   -delta(t, h));
  };
  keys.Run(SpanRanges(spans));
  Pass queries{config, gbefore, gafter, /*reverse=*/true};
  queries.absorb = [&](HeadState& s, int64_t t, int64_t h) {
    s.Absorb(Row(Side::kQuery, q, t, h, d, &scale(t, h)), &dy(t, h * dv), -delta(t, h));
  };
  queries.read = [&](HeadState& s, int64_t t, int64_t h) {
    s.Read(&dvalue(t, h * dv), Row(Side::kKey, k, t, h, d));
    s.ReadGradient(&dk(t, h * d), Row(Side::kKey, k, t, h, d), &v(t, h * dv), 1);
  };
  queries.Run(SpanRanges(spans));
  dq.StoreTo(dq_out);
  dk.StoreTo(dk_out);
  dvalue.StoreTo(dv_out);
}

void ElaDecode(const Context&, Tensor y_out, Tensor state, Tensor q_in, Tensor k_in, Tensor v_in,
               const ElaConfig& config) {
  CheckState("state", state, config, q_in.dim(0), false);
  const int64_t d = config.head_dim, dv = config.value_dim;
  Matrix q = Saturated(q_in), k = Saturated(k_in), v(v_in);
  Matrix y(q.rows(), config.num_heads * dv);
  for (int64_t b = 0; b < q.rows(); ++b) {
    for (int64_t h = 0; h < config.num_heads; ++h) {
      HeadState s(config, h);
      s.Fold(HeadOf(state, config, b, h));
      s.Absorb(Row(Side::kKey, k, b, h, d), &v(b, h * dv), 1);
      FeatureRows<double> query = Row(Side::kQuery, q, b, h, d);
      const double log2_scale = s.ReadScale(query);
      query.log2_scale = &log2_scale;
      const double den = s.Read(&y(b, h * dv), query);
      for (int64_t e = 0; e < dv; ++e) y(b, h * dv + e) /= den;
      s.StoreTo(HeadOf(state, config, b, h));
    }
  }
  y.StoreTo(y_out);
}

void ElaTakeSlowPathChunks(const Context&, Tensor) {}  // it has one path

}  // namespace ela::kernels::reference
