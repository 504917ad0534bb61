#include "trainer/optim/initial_values.h"

#include <cmath>
#include <numbers>
#include <string_view>

namespace ela::trainer {
namespace {

constexpr double kDeviation = 0.02;

// Finaliser of SplitMix64: a bijection of 64 bits in which every input bit changes half the output.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// FNV-1a: the stream of a tensor is its name, so no other tensor moves its numbers.
uint64_t StreamOf(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

// In (0, 1): the middles of 2^53 equal cells.
double Uniform(uint64_t bits) { return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53; }

struct NormalPair {
  double even, odd;
};

// Box and Muller: two uniform numbers of a pair of elements make its two normal ones.
NormalPair NormalsOf(uint64_t key, uint64_t pair) {
  const double radius = std::sqrt(-2 * std::log(Uniform(Mix(key ^ Mix(2 * pair)))));
  const double angle = 2 * std::numbers::pi * Uniform(Mix(key ^ Mix(2 * pair + 1)));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

uint64_t KeyOf(uint64_t seed, uint64_t stream) { return Mix(Mix(seed) ^ stream); }

double DeviationOf(std::string_view name, int64_t num_layers) {
  const bool ends_branch = name.ends_with(".attn.o.weight") || name.ends_with(".down.weight") ||
                           name.ends_with(".lobe.v.weight");
  return ends_branch ? kDeviation / std::sqrt(2.0 * static_cast<double>(num_layers)) : kDeviation;
}

void FillNormal(std::string_view name, double deviation, uint64_t seed, int64_t begin, int64_t end,
                float* out) {
  const uint64_t key = KeyOf(seed, StreamOf(name));
  for (int64_t i = begin; i < end;) {
    const NormalPair pair = NormalsOf(key, static_cast<uint64_t>(i) / 2);
    if (i % 2 == 0) *out++ = static_cast<float>(deviation * pair.even);
    if (i % 2 == 0 && ++i == end) return;
    *out++ = static_cast<float>(deviation * pair.odd);
    ++i;
  }
}

}  // namespace

double CounterNormal(uint64_t seed, uint64_t stream, uint64_t index) {
  const NormalPair pair = NormalsOf(KeyOf(seed, stream), index / 2);
  return index % 2 == 0 ? pair.even : pair.odd;
}

void InitialValues(const job::ParameterInfo& parameter, int64_t num_layers, uint64_t seed,
                   int64_t begin, int64_t end, float* out) {
  if (parameter.shape.size() > 1) {
    FillNormal(parameter.name, DeviationOf(parameter.name, num_layers), seed, begin, end, out);
    return;
  }
  const float value = parameter.name.ends_with(".bias") ? 0.0f : 1.0f;
  for (int64_t i = begin; i < end; ++i) *out++ = value;
}

ParameterSource InitialSource(int64_t num_layers, uint64_t seed) {
  return [num_layers, seed](const job::ParameterInfo& parameter, int64_t begin, int64_t end,
                            float* out) {
    InitialValues(parameter, num_layers, seed, begin, end, out);
    return absl::OkStatus();
  };
}

}  // namespace ela::trainer
