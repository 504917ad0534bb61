#include "kernels/hopper.h"

#include "kernels/cuda_support.h"

namespace ela::kernels::cuda {
namespace {

/// The driver's encoder, without linking to the driver.
auto TensorMapEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  ELA_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &result));
  ELA_CHECK(result == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

bool IsHopper() {
  int device = 0, major = 0;
  ELA_CUDA_CHECK(cudaGetDevice(&device));
  ELA_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
}

bool HasTensorMap(const Tensor& x) {
  return x.dtype() == DType::kBf16 && reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 &&
         x.stride() % 8 == 0 && x.dim(0) < INT32_MAX - 64;
}

CUtensorMap TensorMapOf(const Tensor& x, int box_rows, CUtensorMapL2promotion promotion) {
  static const auto encode = TensorMapEncoder();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(x.row_numel()),
                               static_cast<cuuint64_t>(x.dim(0))};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(x.stride()) * sizeof(uint16_t)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, x.data(), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  ELA_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: %d", static_cast<int>(result));
  return map;
}

}  // namespace ela::kernels::cuda
