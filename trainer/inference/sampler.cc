#include "trainer/inference/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ela::trainer {
namespace {

// The finaliser of splitmix64: every bit of the input reaches every bit of the output.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// In [0, 1).
double Uniform(uint64_t seed, uint64_t sample, uint64_t position) {
  return static_cast<double>(Mix(Mix(Mix(seed) ^ sample) ^ position) >> 11) * 0x1p-53;
}

}  // namespace

int32_t SampleToken(const float* logits, int64_t vocab_size, const SamplerConfig& config,
                    uint64_t sample, uint64_t position) {
  if (config.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits);
  }
  std::vector<int32_t> order(static_cast<size_t>(vocab_size));
  std::iota(order.begin(), order.end(), 0);
  const int64_t kept = config.top_k > 0 ? std::min(config.top_k, vocab_size) : vocab_size;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  order.resize(static_cast<size_t>(kept));
  std::vector<double> weights;
  for (int32_t id : order) {
    weights.push_back(
        std::exp((static_cast<double>(logits[id]) - logits[order[0]]) / config.temperature));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double mass = 0;
  size_t count = 0;
  while (count < weights.size()) {
    mass += weights[count++];
    if (mass >= config.top_p * total) break;
  }
  double left = Uniform(config.seed, sample, position) * mass;
  for (size_t i = 0; i < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace ela::trainer
