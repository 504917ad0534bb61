// One head of one sequence at work on the CPU: chunks of at most 64 rows, in scan order.
//
// All passes do the same with exchanged roles (model.md 1.1, 1.2): rows of one side are *read*
// against what rows of the other side before them (in scan order) have *written*.
//   forward       queries read keys times [v, 1]: y and the log-denominators
//   dq            queries read keys times [v, 1], with the gradient [dy, -delta]
//   dk, dv        keys read queries times [dy, -delta], from the last row to the first, with [v, 1]
// With R and W the features read and written, V the values, G the gradients and M the causal mask
// times decay, a chunk that comes after a state S computes
//   sums      (M o R W^T) V + decay R S
//   gradient  with respect to R:  (M o G V^T) W  and  decay G S^T.
#pragma once

#include <algorithm>
#include <array>

#include "kernels/context.h"
#include "kernels/ela/feature_map.h"
#include "kernels/ela/state.h"

namespace ela::kernels::cpu {

inline constexpr int64_t kChunk = 64;

enum class PassKind : uint8_t { kForward, kQueryGradient, kKeyGradient };

/// The tensors of a pass; those that it does not use are empty.
struct PassTensors {
  PassKind kind = PassKind::kForward;
  Tensor q, k, v, dy, y, lse;
  Tensor out;      // y, dq or dk
  Tensor out_lse;  // forward
  Tensor dv;       // dk, dv
  bool reverse() const { return kind == PassKind::kKeyGradient; }
};

/// Working copies of states, with rows padded to whole vectors.
struct PaddedState {
  explicit PaddedState(const StateSizes& sizes);
  int64_t floats() const { return kHeader + gauge + features * (1 + values); }
  StateView<float> View(float* at) const {
    return {at, at + kHeader, at + kHeader + gauge, at + kHeader + gauge + features, values};
  }
  static constexpr int64_t kHeader = 8;
  int64_t gauge, features, values;
};

class HeadPass {
 public:
  /// Floats of working memory that one object needs.
  static int64_t WorkFloats(const ElaConfig& config);

  HeadPass(const Context& ctx, const ElaConfig& config, const PassTensors& tensors, int64_t head,
           float* memory);

  int64_t state_floats() const { return padded_.floats(); }

  /// out = what rows [begin, end), at most kChunk, write.
  void Write(float* out, int64_t begin, int64_t end);
  /// Reads rows [begin, end) against what they write themselves, causally, and `before` (null:
  /// nothing); out (null: not wanted) = what they write.
  void Run(float* out, const float* before, int64_t begin, int64_t end);
  /// Reads rows [begin, end), each against all of `state`.
  void Read(const float* state, int64_t begin, int64_t end);

  /// acc = acc (+) later.
  void Fold(float* acc, const float* later) const;
  /// Between working copies and one head of a state tensor.
  void Load(float* out, const float* head) const;
  void Store(float* head, const float* state) const;
  void Clear(float* state) const { std::fill_n(state, padded_.floats(), 0.0f); }

 private:
  using Rows = FeatureRows<float>;
  struct Range {  // of the loaded chunk's rows, in scan order
    int64_t begin, end;
    int64_t n() const { return end - begin; }
  };

  int64_t RowAt(int64_t i) const { return tensors_.reverse() ? end_ - 1 - i : begin_ + i; }
  void LoadRows(float* out, int64_t ld, const Tensor& x, int64_t columns) const;
  void LoadWriters();
  void LoadReaders();
  void LoadScales();
  Rows Writers(Range r) const;
  Rows Readers(Range r) const;

  /// Features of the rows in r, and what they add up to.
  void WriteFeatures(Range r);
  void SumWrites(float* out, Range r);
  /// Whether one gauge for all of r would lose results.
  bool MustSplit(const float* before, Range r);
  void RunSplit(const float* before);
  void RunRange(const float* before, Range r);
  void ReadBefore(const float* before, Range r, bool fades);
  void ReadChunk(Range r);
  void ReadRows(Range r, int64_t first, int64_t last);
  void Mask(float* weights, int64_t first, int64_t last) const;
  void StoreOutputs(Range r);

  const Context& ctx_;
  const FeatureMath<float>& math_;
  PassTensors tensors_;
  StateSizes sizes_;
  PaddedState padded_;
  int64_t head_;
  float log_decay_;
  std::array<float, kChunk + 1> decay_;  // e^(log_decay i)

  int64_t begin_ = 0, end_ = 0;  // the rows that are loaded
  // All [kChunk][...]: columns padded to whole vectors where products run over them.
  float *reader_x_, *writer_x_;       // [d]
  float *values_, *gradients_;        // [values]
  float *value_extra_, *grad_extra_;  // [1]
  float* row_scale_;                  // -lse of each row
  float *reads_, *reads_before_;      // [features]
  float *writes_, *writes_t_;         // [features], and transposed [features][kChunk]
  float* values_t_;                   // [values][kChunk]
  float* weights_;                    // [kChunk]
  float *sums_, *den_;                // [values], [1]
  float* dreads_;                     // [features]
  float* dx_;                         // [d]
  float* state_t_;                    // [values][features]
  float* scaled_;                     // [values]: values times decay
  float* gauge_;                      // of the chunk
  float *so_far_, *part_;             // states while a chunk is split
};

}  // namespace ela::kernels::cpu
