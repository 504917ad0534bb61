// Initial weights (model.md 2): N(0, 0.02), the matrices that end a residual branch scaled by
// 1/sqrt(2N), gains 1, biases 0. Element i of tensor "name" is a pure function of (seed, name, i):
// the same on any mesh, in any order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "proto/job/plan.h"

namespace ela::trainer {

/// Elements [begin, end) of a parameter, row-major, as floats into `out`. What a model is filled
/// from: initial values, a checkpoint, an exported model. Called from one thread.
using ParameterSource = std::function<absl::Status(const job::ParameterInfo& parameter,
                                                   int64_t begin, int64_t end, float* out)>;

/// A standard normal number, a pure function of its arguments.
double CounterNormal(uint64_t seed, uint64_t stream, uint64_t index);

void InitialValues(const job::ParameterInfo& parameter, int64_t num_layers, uint64_t seed,
                   int64_t begin, int64_t end, float* out);

ParameterSource InitialSource(int64_t num_layers, uint64_t seed);

}  // namespace ela::trainer
