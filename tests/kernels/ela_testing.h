// Attention problems for tests: inputs, forward and backward on any back end, whole or in shards.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/ela_oracle.h"
#include "tests/support/backend_testing.h"

namespace ela::testing {

inline constexpr FeatureMap kAllMaps[] = {FeatureMap::kHadamardExp, FeatureMap::kSumSquared,
                                          FeatureMap::kSubSquared, FeatureMap::kModulatedDot};

struct Problem {
  ElaConfig config;
  Spans spans;
  int64_t tokens() const { return spans.begin.back(); }
  std::string Name() const {
    return "kernel " + std::to_string(static_cast<int>(config.kernel)) +
           (config.causal ? " causal" : " bidirectional") +
           (config.log_decay.empty() ? "" : " decay") + " T " + std::to_string(tokens()) + " D " +
           std::to_string(config.head_dim) + " Dv " + std::to_string(config.value_dim);
  }
};

/// Sequences of the given rows each, one span a sequence.
inline Spans Sequences(const std::vector<int64_t>& lengths) {
  Spans spans{{0}, {}};
  for (size_t b = 0; b < lengths.size(); ++b) {
    spans.begin.push_back(spans.begin.back() + lengths[b]);
    spans.sequence.push_back(static_cast<int32_t>(b));
  }
  return spans;
}
/// One sequence of several documents.
inline Spans Documents(const std::vector<int64_t>& lengths) {
  Spans spans = Sequences(lengths);
  for (int32_t& b : spans.sequence) b = 0;
  return spans;
}

enum class Decay { kNone, kHead };

inline Problem MakeProblem(FeatureMap kernel, bool causal, Decay decay, int64_t heads, int64_t d,
                           int64_t dv, Spans spans) {
  Problem p;
  p.config.kernel = kernel;
  p.config.causal = causal;
  p.config.num_heads = heads;
  p.config.head_dim = d;
  p.config.value_dim = dv;
  if (decay == Decay::kHead) p.config.log_decay = kernels::HeadLogDecay(heads);
  p.spans = std::move(spans);
  return p;
}

/// Every mode of every kernel.
inline std::vector<Problem> AllModes(int64_t heads, int64_t d, int64_t dv, const Spans& spans) {
  std::vector<Problem> problems;
  for (FeatureMap kernel : kAllMaps) {
    problems.push_back(MakeProblem(kernel, true, Decay::kNone, heads, d, dv, spans));
    problems.push_back(MakeProblem(kernel, true, Decay::kHead, heads, d, dv, spans));
    problems.push_back(MakeProblem(kernel, false, Decay::kNone, heads, d, dv, spans));
  }
  return problems;
}

/// q, k, v, dy and everything that comes of them, on a back end of the host. q, k and v are columns
/// of one product [T, H (2 D + Dv)], as in the model, and so are their gradients.
class Attention {
 public:
  Attention(DType dtype, const Problem& p)
      : p_(p),
        dtype_(dtype),
        qkv_(dtype, {p.tokens(), Width()}),
        dqkv_(dtype, {p.tokens(), Width()}),
        y_(dtype, {p.tokens(), p.config.num_heads, p.config.value_dim}),
        dy_(dtype, {p.tokens(), p.config.num_heads, p.config.value_dim}),
        lse_(StatisticOf(dtype), {p.tokens(), p.config.num_heads}) {
    ELA_CHECK(current_device == nullptr, "on a card cuda/ela_test.cc tests attention");
  }

  /// N(0, scale^2), rounded to bf16 whatever the type; dy N(0, 1).
  void FillNormal(uint64_t seed, double scale = 1) {
    Copy(qkv_, Input(DType::kF64, {p_.tokens(), Width()}, seed, scale));
    Copy(v(), Input(DType::kF64, {p_.tokens(), Heads(), p_.config.value_dim}, seed + 1));
    Copy(dy_, Input(DType::kF64, {p_.tokens(), Heads(), p_.config.value_dim}, seed + 2));
  }
  void CopyInputs(const Attention& other) {
    Copy(qkv_, other.qkv_);
    Copy(dy_, other.dy_);
  }

  Tensor q() const { return Part(qkv_, 0, p_.config.head_dim); }
  Tensor k() const { return Part(qkv_, p_.config.head_dim, p_.config.head_dim); }
  Tensor v() const { return Part(qkv_, 2 * p_.config.head_dim, p_.config.value_dim); }
  Tensor dq() const { return Part(dqkv_, 0, p_.config.head_dim); }
  Tensor dk() const { return Part(dqkv_, p_.config.head_dim, p_.config.head_dim); }
  Tensor dv() const { return Part(dqkv_, 2 * p_.config.head_dim, p_.config.value_dim); }
  Tensor y() const { return y_; }
  Tensor dy() const { return dy_; }
  Tensor lse() const { return lse_; }
  const Problem& problem() const { return p_; }

  void Forward(const kernels::Context& ctx, Tensor before = {}, Tensor after = {}) const {
    kernels::ElaForward(ctx, y_, lse_, q(), k(), v(), before, after, p_.config, p_.spans);
  }
  void Backward(const kernels::Context& ctx, Tensor before = {}, Tensor after = {},
                Tensor gbefore = {}, Tensor gafter = {}) const {
    kernels::ElaBackward(ctx, dq(), dk(), dv(), dy_, q(), k(), v(), y_, lse_, before, after,
                         gbefore, gafter, p_.config, p_.spans);
  }
  void Run(const kernels::Context& ctx) const {
    Forward(ctx);
    Backward(ctx);
  }

  OracleOutput Oracle() const { return Oracle(PairOf(p_.config.kernel)); }
  OracleOutput Oracle(const PairFunction& pair) const {
    OracleInput in{Values(q()), Values(k()), Values(v()), Values(dy_)};
    for (auto* x : {&in.q, &in.k}) {
      for (double& at : *x) at = std::clamp(at, -0x1p20, 0x1p20);
    }
    return ElaOracle(p_.config, p_.spans, pair, in).output();
  }

  /// The largest error of y and of the gradients, each against the largest number of its kind.
  std::pair<double, double> Errors(const OracleOutput& expected, double floor = 1e-30) const {
    const double gradients = std::fmax(
        std::fmax(RelativeError(dq(), expected.dq, floor), RelativeError(dk(), expected.dk, floor)),
        RelativeError(dv(), expected.dv, floor));
    return {RelativeError(y_, expected.y, floor), gradients};
  }

  /// y, lse and the gradients, as copies.
  std::vector<Buffer> TakeOutputs() const {
    std::vector<Buffer> outputs;
    for (const Tensor& x : {y(), lse(), dq(), dk(), dv()}) {
      outputs.emplace_back(x.dtype(), std::initializer_list<int64_t>{x.dim(0), x.row_numel()});
      Copy(outputs.back(), x);
    }
    return outputs;
  }

 private:
  int64_t Heads() const { return p_.config.num_heads; }
  int64_t Width() const { return Heads() * (2 * p_.config.head_dim + p_.config.value_dim); }
  Tensor Part(const Tensor& all, int64_t begin, int64_t columns) const {
    return all.Columns(Heads() * begin, Heads() * (begin + columns))
        .View({p_.tokens(), Heads(), columns});
  }

  Problem p_;
  DType dtype_;
  Buffer qkv_, dqkv_, y_, dy_, lse_;
};

/// Every output is within `tolerance` of the largest number of its kind, or of `floor`: a single
/// token has no gradient but what rounding leaves.
inline void ExpectOutputsNear(const std::vector<Buffer>& actual,
                              const std::vector<Buffer>& expected, double tolerance,
                              double floor = 0.05) {
  static const char* const kNames[] = {"y", "lse", "dq", "dk", "dv"};
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = RelativeError(actual[i], expected[i], floor);
    EXPECT_TRUE(error <= tolerance) << kNames[i] << ": error " << error;
  }
}

/// What the ops make of N(0, scale^2) inputs, for the checks of backend_testing.h.
inline OpRun AttentionRun(const Problem& p, double scale = 1) {
  return [=](const kernels::Context& ctx, DType dtype) {
    Attention a(dtype, p);
    a.FillNormal(1, scale);
    a.Run(ctx);
    return a.TakeOutputs();
  };
}

}  // namespace ela::testing
