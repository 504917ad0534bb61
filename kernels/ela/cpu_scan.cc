#include "kernels/ela/cpu_scan.h"

#include <bit>

namespace ela::kernels::cpu {

const SpanRange& SequenceRows::SpanOf(int64_t row) const {
  const auto after =
      std::upper_bound(spans.begin(), spans.end(), row,
                       [](int64_t at, const SpanRange& span) { return at < span.begin; });
  return *(after - 1);
}

std::vector<SequenceRows> SequencesOf(const Spans& spans, int64_t tokens) {
  std::vector<SequenceRows> sequences;
  for (const SpanRange& span : SpanRanges(spans)) {
    if (span.first) sequences.push_back({span.sequence, span.begin, span.begin, {}});
    sequences.back().end = span.end;
    if (span.begin < span.end) sequences.back().spans.push_back(span);
  }
  return sequences;
}

int64_t Node::Middle() const {
  const int64_t n = size();
  if (n % 2 == 0) return begin + n / 2;
  return begin + static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n - 1)));
}

// Two a level; each level has at least one bit less of the number of chunks.
int64_t HeadScan::WorkStates(int64_t chunks) {
  return 2 * std::bit_width(static_cast<uint64_t>(chunks));
}

bool HeadScan::Resets(Node node) const {
  const int64_t begin = rows_.RowOf(node.begin), end = rows_.RowOf(node.end);
  if (reverse_) {
    const SpanRange& span = rows_.SpanOf(begin);
    return span.end < end || (span.end == end && !span.last);
  }
  const SpanRange& span = rows_.SpanOf(end - 1);
  return span.begin > begin || (span.begin == begin && !span.first);
}

const float* HeadScan::Continue(const float* before, const float* node_sum, Node node,
                                float* before_memory) {
  if (before == nullptr || Resets(node)) return node_sum;
  std::copy_n(before, pass_.state_floats(), before_memory);
  pass_.Fold(before_memory, node_sum);
  return before_memory;
}

void HeadScan::Run(float* out, const float* before, Node node) {
  if (node.size() == 1) return RunChunk(out, before, node.begin);
  const int64_t taken = taken_;
  Node first{node.begin, node.Middle()}, second{node.Middle(), node.end};
  if (reverse_) std::swap(first, second);
  float* first_sum = Take();
  Run(first_sum, before, first);
  const float* between = Continue(before, first_sum, first, Take());
  Run(out, between, second);
  if (out != nullptr && !Resets(second)) {
    pass_.Fold(first_sum, out);
    std::copy_n(first_sum, pass_.state_floats(), out);
  }
  taken_ = taken;
}

// The pieces of a chunk that are of one span each, in scan order.
void HeadScan::RunChunk(float* out, const float* before, int64_t chunk) {
  const int64_t chunk_begin = rows_.RowOf(chunk), chunk_end = rows_.RowOf(chunk + 1);
  int64_t at = reverse_ ? chunk_end : chunk_begin;
  const int64_t last = reverse_ ? chunk_begin : chunk_end;
  while (at != last) {
    const SpanRange& span = rows_.SpanOf(reverse_ ? at - 1 : at);
    const int64_t begin = reverse_ ? std::max(span.begin, chunk_begin) : at;
    const int64_t end = reverse_ ? at : std::min(span.end, chunk_end);
    const bool continues = reverse_ ? span.end > at || span.last : span.begin < at || span.first;
    at = reverse_ ? begin : end;
    pass_.Run(at == last ? out : nullptr, continues ? before : nullptr, begin, end);
  }
}

void HeadScan::SumLast(float* out, Node node) {
  const int64_t begin = rows_.RowOf(node.begin), end = rows_.RowOf(node.end);
  const SpanRange& span = rows_.SpanOf(reverse_ ? begin : end - 1);
  Sum(out, node, std::max(begin, span.begin), std::min(end, span.end));
}

bool HeadScan::Sum(float* out, Node node, int64_t begin, int64_t end) {
  begin = std::max(begin, rows_.RowOf(node.begin));
  end = std::min(end, rows_.RowOf(node.end));
  if (begin >= end) return false;
  if (node.size() == 1) {
    pass_.Write(out, begin, end);
    return true;
  }
  Node first{node.begin, node.Middle()}, second{node.Middle(), node.end};
  if (reverse_) std::swap(first, second);
  const int64_t taken = taken_;
  if (!Sum(out, first, begin, end)) return Sum(out, second, begin, end);
  float* second_sum = Take();
  if (Sum(second_sum, second, begin, end)) pass_.Fold(out, second_sum);
  taken_ = taken;
  return true;
}

}  // namespace ela::kernels::cpu
