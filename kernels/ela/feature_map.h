// One kernel k(q, k) of exact linear attention as a pair of feature vectors: all that the rest of
// the folder knows about it. A new kernel is one class of this kind (PlainFeatureMap below is the
// short way) and its line in FeatureMapOf.
//
// A state sums features of *written* rows times values; *read* rows weigh it. Causal forward:
// keys are written, queries read. Backward, dk and dv: queries are written, keys read (model.md
// 1.2). Read(x) . Write(z) = k(x, z) whichever side is which.
//
// A state's gauge is what its features are relative to: hadamard_exp's running maximum per feature,
// the squared distances' centre. The product of a read with a state does not depend on it, so it
// has no gradient; it is there for range and accuracy. All of this works on a few rows at once, in
// Real = float (CPU) and double (reference).
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/ela/ela.h"

namespace ela::kernels {

enum class Side : uint8_t { kQuery, kKey };

/// n rows of queries or keys, saturated to +-kLargest. The features of row i are multiplied by
/// e^log_scale[i] and 2^log2_scale[i] (null: by 1).
template <class Real>
struct FeatureRows {
  Side side = Side::kKey;
  const Real* x = nullptr;  // [n][d]
  const Real* log_scale = nullptr;
  int64_t n = 0, d = 0;
  const Real* log2_scale = nullptr;  // whole numbers

  bool scaled() const { return log_scale != nullptr || log2_scale != nullptr; }
  Real Scale(int64_t i) const {
    const Real scale = log_scale == nullptr ? Real{1} : std::exp(log_scale[i]);
    return log2_scale == nullptr ? scale : std::ldexp(scale, static_cast<int>(log2_scale[i]));
  }
};

/// Elements of queries and keys beyond this count as this: there, neighbouring floats are so far
/// apart that weights between them are all or nothing anyway.
inline constexpr double kLargestElement = 1 << 20;

/// The state of one head of one sequence: `count` tokens, and relative to `gauge` for each feature
/// f its sum over tokens norm[f] and sums[f][0 .. dv), rows of `ld`.
template <class Real>
struct StateView {
  Real* count = nullptr;
  Real* gauge = nullptr;
  Real* norm = nullptr;
  Real* sums = nullptr;
  int64_t ld = 0;
};

struct StateSizes {
  int64_t d = 0, dv = 0;
  int64_t features = 0, gauge = 0;
};

template <class Real>
class FeatureMath {
 public:
  using Rows = FeatureRows<Real>;
  virtual ~FeatureMath() = default;

  /// F, and the numbers of a gauge, of a head of d numbers.
  virtual int64_t features(int64_t d) const = 0;
  virtual int64_t gauge_size(int64_t d) const { return 0; }

  /// A gauge for a state into which just these rows are written.
  virtual void ChooseGauge(Real* gauge, const Rows& rows) const {}
  /// Features [n], rows of ld >= F, as they are added to a state of this gauge.
  virtual void Write(Real* w, int64_t ld, const Rows& rows, const Real* gauge) const = 0;
  /// Features [n], rows of ld >= F, as they weigh a state of this gauge.
  virtual void Read(Real* r, int64_t ld, const Rows& rows, const Real* gauge) const = 0;
  /// The same for two gauges at once.
  virtual void ReadTwo(Real* r_a, Real* r_b, int64_t ld, const Rows& rows, const Real* gauge_a,
                       const Real* gauge_b) const {
    Read(r_a, ld, rows, gauge_a);
    Read(r_b, ld, rows, gauge_b);
  }
  /// dx [n][d] += the gradient of sum(r * dr) with respect to the rows, r = Read. What scales a
  /// whole row of queries cancels in the output, and needs no gradient.
  virtual void AddReadGradient(Real* dx, const Real* dr, const Real* r, int64_t ld,
                               const Rows& rows, const Real* gauge) const = 0;

  /// log2_scale [n] for reading these queries (their own scales are not looked at) from states of
  /// two gauges (the second may be null) with features of moderate size. A chunk's gauge comes of
  /// all its keys, later ones included; as powers of two it and the scale leave no trace of them
  /// in the output of an earlier row.
  virtual void ReadScale(Real* log2_scale, const Rows& queries, const Real* gauge_a,
                         const Real* gauge_b) const {
    for (int64_t i = 0; i < queries.n; ++i) log2_scale[i] = 0;
  }

  /// acc = e^(log_decay of the tokens of `later`) acc + later. Neither is empty.
  virtual void Fold(const StateSizes& sizes, const StateView<Real>& acc,
                    const StateView<Real>& later, Real log_decay) const;

  /// weights[i][j] = Read(reader i) . Write(writer j) for all pairs, without going through
  /// features, where that loses precision. False: features are good enough.
  virtual bool Weights(Real* weights, int64_t ld, const Rows& readers, const Rows& writers) const {
    return false;
  }
  /// How many of these keys, from the first on, can share a gauge: up to one that is so much larger
  /// than the first and than what was seen before (gauge; null: nothing) that the earlier rows'
  /// results would be lost. At least 1.
  virtual int64_t RowsOfOneGauge(const Rows& keys, const Real* before, Real log_decay) const {
    return keys.n;
  }
  /// Whether features read at this gauge grow too large to be multiplied in Real.
  virtual bool ReadsTooLarge(const Rows& readers, const Real* gauge) const { return false; }
};

/// A kernel without a gauge, row by row: k(q, k) = Phi(q) . Psi(k), which must never be negative.
template <class Real>
class PlainFeatureMap : public FeatureMath<Real> {
 public:
  using Rows = FeatureRows<Real>;

  /// phi, psi [F] of one row of d numbers.
  virtual void Phi(Real* phi, const Real* q, int64_t d) const = 0;
  virtual void Psi(Real* psi, const Real* k, int64_t d) const = 0;
  /// dq [d] += the gradient of sum(phi * dphi), dk [d] += that of sum(psi * dpsi).
  virtual void AddPhiGradient(Real* dq, const Real* dphi, const Real* q, int64_t d) const = 0;
  virtual void AddPsiGradient(Real* dk, const Real* dpsi, const Real* k, int64_t d) const = 0;

  void Write(Real* w, int64_t ld, const Rows& rows, const Real* gauge) const final;
  void Read(Real* r, int64_t ld, const Rows& rows, const Real* gauge) const final {
    Write(r, ld, rows, gauge);
  }
  void AddReadGradient(Real* dx, const Real* dr, const Real* r, int64_t ld, const Rows& rows,
                       const Real* gauge) const final;
};

/// One kernel in both precisions.
struct FeatureMapPair {
  std::string name;
  const FeatureMath<float>* f32 = nullptr;
  const FeatureMath<double>* f64 = nullptr;
};

/// What config.custom, else config.kernel names.
const FeatureMapPair& FeatureMapOf(const ElaConfig& config);

template <class Real>
const FeatureMath<Real>& MathOf(const ElaConfig& config) {
  const FeatureMapPair& pair = FeatureMapOf(config);
  if constexpr (sizeof(Real) == sizeof(float)) {
    return *pair.f32;
  } else {
    return *pair.f64;
  }
}

}  // namespace ela::kernels
