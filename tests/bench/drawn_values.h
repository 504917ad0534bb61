// Parameters of a model that nobody trained.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "proto/job/plan.h"

namespace ela::bench {

/// Of the size of the trainer's initial values, and drawn faster.
inline absl::Status DrawValues(const job::ParameterInfo& info, int64_t begin, int64_t end,
                               float* out) {
  if (info.shape.size() == 1) {  // gains and biases
    std::fill(out, out + (end - begin), info.name.find("bias") == std::string::npos ? 1.0f : 0.0f);
    return absl::OkStatus();
  }
  constexpr float kWidth = 0.0346f;  // uniform, of standard deviation 0.02
  for (int64_t i = begin; i < end; ++i) {
    uint64_t h = (static_cast<uint64_t>(i) + info.name.size()) * 0x9E3779B97F4A7C15u;
    h = (h ^ (h >> 31)) * 0xBF58476D1CE4E5B9u;
    *out++ = (static_cast<float>(h >> 40) * 0x1p-23f - 1) * kWidth;
  }
  return absl::OkStatus();
}

}  // namespace ela::bench
