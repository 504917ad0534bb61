// The order in which the CPU sums a sequence: a fixed binary tree over chunks of 64 rows, counted
// from the sequence's first row on this rank. Even numbers of chunks are halved, odd ones split
// off the largest power of two. What a row sees before it is the fold, from the largest to the
// smallest, of the subtrees left of its path from the root (for passes from the last row: right).
//
// Two things follow. Sums over a million tokens are twenty additions deep. And a rank that holds
// the 1/2^n-th part of a sequence, in whole chunks, holds a subtree: if ranks' states are folded in
// the same tree, every row sees the same bits on any such number of ranks.
#pragma once

#include <vector>

#include "kernels/ela/cpu_head.h"
#include "kernels/ela/state.h"

namespace ela::kernels::cpu {

/// The rows of one sequence on this rank and the spans they fall into, empty ones left out.
struct SequenceRows {
  int64_t sequence = 0;
  int64_t begin = 0, end = 0;
  std::vector<SpanRange> spans;

  int64_t chunks() const { return (end - begin + kChunk - 1) / kChunk; }
  int64_t RowOf(int64_t chunk) const { return std::min(end, begin + chunk * kChunk); }
  const SpanRange& SpanOf(int64_t row) const;
};
std::vector<SequenceRows> SequencesOf(const Spans& spans, int64_t tokens);

/// Chunks [begin, end) of a sequence: a node of the tree.
struct Node {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  int64_t Middle() const;
};

class HeadScan {
 public:
  /// States of working memory for sequences of up to `chunks` chunks.
  static int64_t WorkStates(int64_t chunks);

  HeadScan(HeadPass* pass, const SequenceRows& rows, bool reverse, float* memory)
      : pass_(*pass), rows_(rows), reverse_(reverse), memory_(memory) {}

  /// Runs a node after `before` (null: nothing); out (null: not wanted) = what rows after the node
  /// see of it: the sum over its last span.
  void Run(float* out, const float* before, Node node);
  /// out = what rows after the node see of it.
  void SumLast(float* out, Node node);
  /// out = the sum over rows [begin, end) of a node. False if there is none.
  bool Sum(float* out, Node node, int64_t begin, int64_t end);
  /// `before` and what the node, whose sum is `node_sum`, adds to it for the rows after: in
  /// `before_memory`, or one of the two as it is.
  const float* Continue(const float* before, const float* node_sum, Node node,
                        float* before_memory);

 private:
  struct Piece {
    int64_t begin, end;
    bool continues;  // sees what is before the chunk
  };
  /// Whether rows after the node see nothing of what is before it.
  bool Resets(Node node) const;
  void RunChunk(float* out, const float* before, int64_t chunk);
  float* Take() { return memory_ + pass_.state_floats() * taken_++; }

  HeadPass& pass_;
  const SequenceRows& rows_;
  bool reverse_;
  float* memory_;
  int64_t taken_ = 0;
};

}  // namespace ela::kernels::cpu
