// How a state lies in memory: per head
//   count, gauge [G], norm [F], sums [F][Dv], padding to 4 numbers
// where count is the number of tokens summed (decay needs it), and the rest is StateView's. The
// identity has count 0 and is never read.
#pragma once

#include <vector>

#include "kernels/check.h"
#include "kernels/ela/ela.h"
#include "kernels/ela/feature_map.h"

namespace ela::kernels {

inline StateSizes StateSizesOf(const ElaConfig& config) {
  const FeatureMath<float>& math = *FeatureMapOf(config).f32;
  return {config.head_dim, config.value_dim, math.features(config.head_dim),
          math.gauge_size(config.head_dim)};
}

inline int64_t HeadStateSize(const StateSizes& s) {
  return (1 + s.gauge + s.features * (s.dv + 1) + 3) / 4 * 4;
}

/// A head's state at `at`.
template <class Real>
StateView<Real> ViewState(Real* at, const StateSizes& s) {
  return {at, at + 1, at + 1 + s.gauge, at + 1 + s.gauge + s.features, s.dv};
}

inline double LogDecayOf(const ElaConfig& config, int64_t head) {
  return config.log_decay.empty() ? 0 : config.log_decay[static_cast<size_t>(head)];
}

/// Checks what the op's arguments share, and returns the number of sequences.
int64_t CheckEla(const ElaConfig& config, const Spans& spans, int64_t tokens);
/// A state tensor [B, S]; empty if `may_be_empty`.
void CheckState(const char* name, const Tensor& state, const ElaConfig& config, int64_t sequences,
                bool may_be_empty);

/// One run of rows that see each other, and whether it touches what is before or after this rank.
struct SpanRange {
  int64_t begin = 0, end = 0;
  int64_t sequence = 0;
  bool first = false, last = false;  // of its sequence
};
std::vector<SpanRange> SpanRanges(const Spans& spans);
/// The first or last span of each sequence.
std::vector<SpanRange> EdgeSpans(const Spans& spans, SpanEdge edge);

}  // namespace ela::kernels
