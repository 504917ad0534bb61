// An attention of ela_oracle.h on the device: its inputs uploaded, the ops run, the errors.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/cuda/ela_oracle.h"

namespace ela::kernels::cuda {

// The CUDA back end, called without the dispatch: a test of it cannot run another.
decltype(::ela::kernels::ElaStateIdentity) ElaStateIdentity;
decltype(::ela::kernels::ElaFold) ElaFold;
decltype(::ela::kernels::ElaLocalState) ElaLocalState;
decltype(::ela::kernels::ElaSegmentFloats) ElaSegmentFloats;
decltype(::ela::kernels::ElaForward) ElaForward;
decltype(::ela::kernels::ElaLocalGradState) ElaLocalGradState;
decltype(::ela::kernels::ElaBackward) ElaBackward;
decltype(::ela::kernels::ElaDecode) ElaDecode;

// Its portable path, whatever the card.
decltype(::ela::kernels::ElaForward) PortableForward;
decltype(::ela::kernels::ElaBackward) PortableBackward;

}  // namespace ela::kernels::cuda

namespace ela::testing::device {

using kernels::DType;
using kernels::SpanEdge;
using kernels::Tensor;

inline double RoundTo(DType dtype, double value) {
  const auto single = static_cast<float>(value);
  return dtype == DType::kBf16 ? static_cast<float>(kernels::Bf16(single)) : single;
}

inline ElaConfig Config(FeatureMap kernel, int64_t heads, int64_t dim, bool causal,
                        bool decay = false) {
  ElaConfig config;
  config.kernel = kernel;
  config.num_heads = heads;
  config.head_dim = config.value_dim = dim;
  config.causal = causal;
  if (decay) {
    for (int64_t h = 0; h < heads; ++h) {
      const double x = heads == 1 ? 2.0 : 2.0 + 7.0 * static_cast<double>(h) / (heads - 1.0);
      config.log_decay.push_back(std::log1p(-std::exp2(-x)));
    }
  }
  return config;
}

/// Spans of the given lengths, all of one sequence or one sequence each.
inline Spans MakeSpans(const std::vector<int64_t>& lengths, bool one_sequence) {
  Spans spans;
  spans.begin = {0};
  for (size_t s = 0; s < lengths.size(); ++s) {
    spans.begin.push_back(spans.begin.back() + lengths[s]);
    spans.sequence.push_back(one_sequence ? 0 : static_cast<int32_t>(s));
  }
  return spans;
}

/// Rows [begin, end) of x, whose rows have `width` numbers.
inline std::vector<double> Slice(const std::vector<double>& x, int64_t begin, int64_t end,
                                 int64_t width) {
  return {x.begin() + begin * width, x.begin() + end * width};
}

/// Rows [begin, end) of an attention on the device, with spans of their own. q, k, v are columns of
/// one buffer, as a fused projection leaves them.
class Shard {
 public:
  Shard(const Attention& a, DType dtype, int64_t begin, int64_t end, const Spans& spans)
      : config_(a.config),
        spans_(spans),
        rows_(end - begin),
        keys_(config_.num_heads * config_.head_dim),
        values_(config_.num_heads * config_.value_dim),
        q_(dtype, rows_, keys_, 2 * keys_ + values_ + 8),
        k_(dtype, rows_, keys_, 2 * keys_ + 16),
        v_(dtype, rows_, values_),
        dy_(dtype, rows_, values_),
        y(dtype, rows_, values_, values_ + 8),
        lse(DType::kF32, rows_, config_.num_heads),
        dq(dtype, rows_, keys_),
        dk(dtype, rows_, keys_, keys_ + 24),
        dv(dtype, rows_, values_) {
    q_.Set(Slice(a.q, begin, end, keys_));
    k_.Set(Slice(a.k, begin, end, keys_));
    v_.Set(Slice(a.v, begin, end, values_));
    dy_.Set(Slice(a.dy, begin, end, values_));
  }

  void Forward(const kernels::Context& ctx, const Tensor& before = {}, const Tensor& after = {}) {
    auto* forward = portable ? kernels::cuda::PortableForward : kernels::cuda::ElaForward;
    const int64_t floats =
        portable ? 0
                 : kernels::cuda::ElaSegmentFloats(ctx, Heads(y), Heads(q_), Heads(k_), Heads(v_),
                                                   config_, spans_);
    segments_ = floats > 0 ? std::make_unique<DeviceBuffer>(DType::kF32, 1, floats) : nullptr;
    forward(ctx, Heads(y), lse.tensor(), Heads(q_), Heads(k_), Heads(v_), before, after, config_,
            spans_, Segments());
  }
  void Backward(const kernels::Context& ctx, const Tensor& before = {}, const Tensor& after = {},
                const Tensor& gbefore = {}, const Tensor& gafter = {}) {
    auto* backward = portable ? kernels::cuda::PortableBackward : kernels::cuda::ElaBackward;
    backward(ctx, Heads(dq), Heads(dk), Heads(dv), Heads(dy_), Heads(q_), Heads(k_), Heads(v_),
             Heads(y), lse.tensor(), before, after, gbefore, gafter, config_, spans_,
             keeps_segments ? Segments() : Tensor());
  }
  void LocalState(const kernels::Context& ctx, const Tensor& state, SpanEdge edge) {
    kernels::cuda::ElaLocalState(ctx, state, Heads(k_), Heads(v_), config_, spans_, edge);
  }
  void LocalGradState(const kernels::Context& ctx, const Tensor& state, SpanEdge edge) {
    kernels::cuda::ElaLocalGradState(ctx, state, Heads(dy_), Heads(q_), Heads(y), lse.tensor(),
                                     config_, spans_, edge);
  }
  Tensor Segments() const { return segments_ == nullptr ? Tensor() : segments_->tensor(); }
  Tensor Heads(const DeviceBuffer& x) const { return x.Heads(config_.num_heads); }

 private:
  ElaConfig config_;
  Spans spans_;
  int64_t rows_, keys_, values_;
  DeviceBuffer q_, k_, v_, dy_;
  std::unique_ptr<DeviceBuffer> segments_;

 public:
  DeviceBuffer y, lse, dq, dk, dv;
  bool portable = false;
  bool keeps_segments = true;  // from the forward pass for the backward pass
};

class Ela : public CudaTest {};

struct Errors {
  double y = 0, lse = 0, dq = 0, dk = 0, dv = 0;
  double worst_gradient() const { return std::fmax(dq, std::fmax(dk, dv)); }
};

/// Of rows [begin, end) of the attention.
inline Errors ErrorsOf(const Shard& shard, const Attention& a, int64_t begin, int64_t end) {
  const int64_t keys = a.config.num_heads * a.config.head_dim;
  const int64_t values = a.config.num_heads * a.config.value_dim;
  const auto error = [&](const DeviceBuffer& x, const std::vector<double>& expected,
                         const std::vector<double>& size, int64_t width) {
    return RmsError(x.Get(), Slice(expected, begin, end, width), Slice(size, begin, end, width));
  };
  Errors e;
  e.y = error(shard.y, a.y, a.y_size, values);
  // Of the log of a denominator, the absolute error counts.
  const std::vector<double> lse = shard.lse.Get();
  for (size_t i = 0; i < lse.size(); ++i) {
    const double want = a.lse[static_cast<size_t>(begin * a.config.num_heads) + i];
    const double off = std::fabs(lse[i] - want) / std::fmax(1.0, std::fabs(want) * 1e-2);
    if (!(off <= e.lse)) e.lse = off;
  }
  e.dq = error(shard.dq, a.dq, a.dq_size, keys);
  e.dk = error(shard.dk, a.dk, a.dk_size, keys);
  e.dv = error(shard.dv, a.dv, a.dv_size, values);
  return e;
}

// Tolerances. float: sums of a few hundred terms whose exponents, up to 2000 in size, are known to
// 1.2e-4 at worst, and which decay moves by a rounding per token. bf16: outputs are rounded to 8
// bits (1.1e-3 rms), and on the Hopper path so are the weights that enter products: 3e-3 forward,
// 6e-3 for gradients. Where one weight is nearly all of a row (wide logits, one row alone), dp and
// delta cancel and what is left of their rounding counts for more. lse: the largest error, of a row
// that one rounded weight (3 x 2^-9) makes up. Elements of 2^20: the same forward, where
// differences of exponents are exact; but gradients take weights from q, k and lse. Each of these,
// and their sums, is known to 1/16 in base 2: weights may be off by 2^0.22 = 1.17.
struct Tolerance {
  double forward, gradient, lse;
};

inline Tolerance ToleranceOf(DType dtype, Family family) {
  for (const Family huge : kHugeFamilies) {
    if (family != huge) continue;
    Tolerance tolerance = ToleranceOf(dtype, Family::kNormal);
    tolerance.gradient = 0.17;
    return tolerance;
  }
  if (dtype == DType::kBf16) return {3e-3, family == Family::kWide ? 8e-3 : 6e-3, 8e-3};
  const bool large = family == Family::kThousand || family == Family::kJumping;
  return large ? Tolerance{1e-3, 1e-3, 1e-3} : Tolerance{5e-5, 1e-4, 5e-4};
}

/// `rows`: of the shard; the gradients of one row alone are differences of equal numbers.
inline void ExpectClose(const Errors& e, Tolerance tolerance, int64_t rows,
                        const std::string& what) {
  if (rows == 1) tolerance.gradient *= 3;
  std::printf("%-44s y %.1e lse %.1e dq %.1e dk %.1e dv %.1e\n", what.c_str(), e.y, e.lse, e.dq,
              e.dk, e.dv);
  EXPECT_TRUE(e.y <= tolerance.forward) << what;
  EXPECT_TRUE(e.lse <= tolerance.lse) << what;
  EXPECT_TRUE(e.worst_gradient() <= tolerance.gradient) << what;
}

inline std::string Describe(const ElaConfig& c, DType dtype, const char* family) {
  constexpr const char* kKernels[] = {"exp", "sum", "sub", "mod"};
  return std::string(kKernels[static_cast<size_t>(c.kernel)]) + " " + family +
         (dtype == DType::kBf16 ? " bf16" : " f32") + (c.causal ? " causal" : " full") +
         (c.log_decay.empty() ? "" : " decay") + " D" + std::to_string(c.head_dim);
}

}  // namespace ela::testing::device
