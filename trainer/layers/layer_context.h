// What a layer needs to run beside its inputs: the kernels' context and memory for what the
// backward pass reads.
#pragma once

#include <initializer_list>
#include <vector>

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::trainer {

/// A parameter and its gradient (float; double on the reference back end), which backward adds to.
struct Parameter {
  kernels::Tensor value;
  kernels::Tensor grad;
};

struct LayerContext {
  kernels::Context ctx;
  /// Activations: taken in forward, read in backward, given back by whoever runs the layers. The
  /// scratch of `ctx` holds what does not outlive a call.
  kernels::Arena* saved = nullptr;
  kernels::DType element = kernels::DType::kF32;    // of activations
  kernels::DType statistic = kernels::DType::kF32;  // of statistics, states and probabilities
  kernels::Tensor positions;  // [T] i32 of the rows at hand, where kernels read them

  kernels::Tensor Saved(std::initializer_list<int64_t> shape) const;
  kernels::Tensor SavedStatistic(std::initializer_list<int64_t> shape) const;
  kernels::Tensor SavedIndex(std::initializer_list<int64_t> shape) const;  // i32
  /// From the scratch: the caller holds an ArenaScope over it.
  kernels::Tensor Scratch(std::initializer_list<int64_t> shape) const;
  kernels::Tensor ScratchStatistic(std::initializer_list<int64_t> shape) const;
  kernels::Tensor ScratchCounts(std::initializer_list<int64_t> shape) const;  // i64
  /// The same, filled with `values` in order.
  kernels::Tensor ScratchStatistic(std::initializer_list<int64_t> shape,
                                   const std::vector<double>& values) const;
};

/// The element types that go with a back end: double on the reference one, else float statistics
/// and `element` activations.
LayerContext MakeLayerContext(const kernels::Context& ctx, kernels::Arena* saved,
                              kernels::DType element = kernels::DType::kF32);

}  // namespace ela::trainer
