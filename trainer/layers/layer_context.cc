#include "trainer/layers/layer_context.h"

#include "kernels/device.h"

namespace ela::trainer {
namespace {

using kernels::DType;
using kernels::Tensor;

Tensor Take(kernels::Arena* arena, DType dtype, std::initializer_list<int64_t> shape) {
  size_t bytes = kernels::SizeOf(dtype);
  for (int64_t n : shape) bytes *= static_cast<size_t>(n);
  return Tensor(arena->Take(bytes), dtype, shape);
}

}  // namespace

Tensor LayerContext::Saved(std::initializer_list<int64_t> shape) const {
  return Take(saved, element, shape);
}
Tensor LayerContext::SavedStatistic(std::initializer_list<int64_t> shape) const {
  return Take(saved, statistic, shape);
}
Tensor LayerContext::SavedIndex(std::initializer_list<int64_t> shape) const {
  return Take(saved, DType::kI32, shape);
}
Tensor LayerContext::Scratch(std::initializer_list<int64_t> shape) const {
  return Take(ctx.scratch, element, shape);
}
Tensor LayerContext::ScratchStatistic(std::initializer_list<int64_t> shape) const {
  return Take(ctx.scratch, statistic, shape);
}
Tensor LayerContext::ScratchCounts(std::initializer_list<int64_t> shape) const {
  return Take(ctx.scratch, DType::kI64, shape);
}
Tensor LayerContext::ScratchStatistic(std::initializer_list<int64_t> shape,
                                      const std::vector<double>& values) const {
  const Tensor t = ScratchStatistic(shape);
  ELA_CHECK(t.numel() == static_cast<int64_t>(values.size()));
  if (statistic == DType::kF64) {
    kernels::CopyIn(ctx, t, values.data());
  } else {
    const std::vector<float> floats(values.begin(), values.end());
    kernels::CopyIn(ctx, t, floats.data());
  }
  return t;
}

LayerContext MakeLayerContext(const kernels::Context& ctx, kernels::Arena* saved, DType element) {
  LayerContext layer;
  layer.ctx = ctx;
  layer.saved = saved;
  const bool reference = ctx.backend == kernels::Backend::kReference;
  layer.element = reference ? DType::kF64 : element;
  layer.statistic = reference ? DType::kF64 : DType::kF32;
  return layer;
}

}  // namespace ela::trainer
