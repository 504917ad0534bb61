// Choosing the next token: temperature, then top-k, then top-p, then a draw. The draw is a pure
// function of (seed, sample, position): a generation can be repeated, whatever runs beside it.
#pragma once

#include <cstdint>
#include <vector>

namespace ela::trainer {

struct SamplerConfig {
  double temperature = 1;  // 0: the likeliest token, ties to the lower id
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // the fewest likeliest tokens whose probabilities reach it
  uint64_t seed = 1234;
};

/// A token id from logits [V], for position `position` of sample `sample`.
int32_t SampleToken(const float* logits, int64_t vocab_size, const SamplerConfig& config,
                    uint64_t sample, uint64_t position);

}  // namespace ela::trainer
