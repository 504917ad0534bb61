#include "kernels/ela/state.h"

#include <cmath>

namespace ela::kernels {

int64_t ElaStateSize(const ElaConfig& config) {
  return config.num_heads * HeadStateSize(StateSizesOf(config));
}

std::vector<double> HeadLogDecay(int64_t num_heads) {
  std::vector<double> rates;
  for (int64_t h = 0; h < num_heads; ++h) {
    const double along = num_heads == 1 ? 0 : static_cast<double>(h) / (num_heads - 1.0);
    rates.push_back(std::log1p(-std::exp2(-(2 + 7 * along))));
  }
  return rates;
}

int64_t CheckEla(const ElaConfig& config, const Spans& spans, int64_t tokens) {
  ELA_CHECK(config.num_heads > 0 && config.head_dim > 0 && config.value_dim > 0,
            "%lld heads of %lld, values of %lld", static_cast<long long>(config.num_heads),
            static_cast<long long>(config.head_dim), static_cast<long long>(config.value_dim));
  if (!config.log_decay.empty()) {
    ELA_CHECK(config.causal, "decay needs causal attention");
    ELA_CHECK(static_cast<int64_t>(config.log_decay.size()) == config.num_heads);
    for (double a : config.log_decay) ELA_CHECK(a <= 0, "log decay %f", a);
  }
  const int64_t count = spans.count();
  ELA_CHECK(static_cast<int64_t>(spans.begin.size()) == count + 1 && spans.begin[0] == 0 &&
                spans.begin.back() == tokens,
            "spans do not cover %lld rows", static_cast<long long>(tokens));
  for (int64_t s = 0; s < count; ++s) {
    const auto i = static_cast<size_t>(s);
    ELA_CHECK(spans.begin[i] <= spans.begin[i + 1], "span %lld", static_cast<long long>(s));
    const int32_t step = spans.sequence[i] - (s == 0 ? -1 : spans.sequence[i - 1]);
    ELA_CHECK(step == 1 || (s > 0 && step == 0), "sequence of span %lld",
              static_cast<long long>(s));
  }
  return count == 0 ? 0 : spans.sequence.back() + 1;
}

void CheckState(const char* name, const Tensor& state, const ElaConfig& config, int64_t sequences,
                bool may_be_empty) {
  if (may_be_empty && state.empty()) return;
  ELA_CHECK(state.rank() == 2 && state.dim(0) == sequences &&
                (sequences == 0 || state.dim(1) == ElaStateSize(config)),
            "%s is not [%lld, %lld]", name, static_cast<long long>(sequences),
            static_cast<long long>(ElaStateSize(config)));
}

std::vector<SpanRange> SpanRanges(const Spans& spans) {
  std::vector<SpanRange> ranges;
  for (size_t s = 0; s < spans.sequence.size(); ++s) {
    const int32_t sequence = spans.sequence[s];
    const bool first = s == 0 || spans.sequence[s - 1] != sequence;
    const bool last = s + 1 == spans.sequence.size() || spans.sequence[s + 1] != sequence;
    ranges.push_back({spans.begin[s], spans.begin[s + 1], sequence, first, last});
  }
  return ranges;
}

std::vector<SpanRange> EdgeSpans(const Spans& spans, SpanEdge edge) {
  std::vector<SpanRange> edges;
  for (const SpanRange& range : SpanRanges(spans)) {
    if (edge == SpanEdge::kFirst ? range.first : range.last) edges.push_back(range);
  }
  return edges;
}

}  // namespace ela::kernels
