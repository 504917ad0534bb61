// Some heads of one sequence at work on the CPU: chunks of at most 64 rows, in scan order, each for
// all these heads in turn, because rows of one head lie far apart and those of neighbouring heads
// side by side.
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
#include <vector>

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

  HeadPass(const Context& ctx, const ElaConfig& config, const PassTensors& tensors,
           int64_t first_head, int64_t num_heads, float* memory);

  /// Of the states below, which hold those of all heads, one after the other.
  int64_t state_floats() const { return num_heads_ * padded_.floats(); }

  /// out = what rows [begin, end), at most kChunk, write.
  void Write(float* out, int64_t begin, int64_t end);
  /// Reads rows [begin, end) against what they write themselves, causally, and `before` (null:
  /// nothing); out (null: not wanted) = what they write.
  void Run(float* out, const float* before, int64_t begin, int64_t end);
  /// Reads rows [begin, end), each against all of `state`.
  void Read(const float* state, int64_t begin, int64_t end);

  /// acc = acc (+) later.
  void Fold(float* acc, const float* later) const;
  /// Between working copies and the states [H] of one sequence.
  void Load(float* out, const float* sequence_state) const;
  void Store(float* sequence_state, const float* state) const;
  void Clear(float* state) const { std::fill_n(state, state_floats(), 0.0f); }

 private:
  using Rows = FeatureRows<float>;
  struct Range {  // of the loaded chunk's rows, in scan order
    int64_t begin, end;
    int64_t n() const { return end - begin; }
  };

  void SetHead(int64_t index);
  float* HeadState(float* states) const { return states + index_ * padded_.floats(); }
  const float* HeadState(const float* states) const {
    return states == nullptr ? nullptr : states + index_ * padded_.floats();
  }
  void FoldHead(float* acc, const float* later, float log_decay) const;
  void RunHead(float* out, const float* before);
  void ReadHead(const float* state);
  int64_t RowAt(int64_t i) const { return tensors_.reverse() ? end_ - 1 - i : begin_ + i; }
  void LoadRows(float* out, int64_t ld, const Tensor& x, int64_t columns) const;
  void LoadPoints(float* out, const Tensor& x) const;
  void Prefetch(const Tensor& x, int64_t columns) const;  // what follows what is loaded
  void LoadWriters();
  void LoadReaders();
  void LoadScales();
  Rows Writers(Range r) const;
  Rows Readers(Range r) const;

  /// Features of the rows in r, and what they add up to.
  void WriteFeatures(Range r);
  void SumWrites(float* out, Range r);
  /// How many rows of r, from the first on, one gauge is good for.
  int64_t GoodRows(const float* before, Range r);
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
  int64_t first_head_, num_heads_;
  std::vector<float> log_decays_;                      // [num_heads]
  std::vector<std::array<float, kChunk + 1>> decays_;  // [num_heads]: e^(log_decay i)

  // The head at work.
  int64_t index_ = 0, head_ = 0;
  float log_decay_ = 0;
  const float* decay_ = nullptr;  // [kChunk + 1]

  int64_t begin_ = 0, end_ = 0;  // the rows that are loaded
  // All [kChunk][...]: columns padded to whole vectors where products run over them.
  float *reader_x_, *writer_x_;       // [d]
  float *values_, *gradients_;        // [values]
  float *value_extra_, *grad_extra_;  // [1]
  float* row_scale_;                  // forward: log2 scales of each row; gradients: -lse
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
