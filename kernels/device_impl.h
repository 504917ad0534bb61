// What a CUDA device owns, for the files that work on it itself.
#pragma once

#include <array>
#include <map>
#include <string>

#include "kernels/cublas_lt.h"
#include "kernels/cuda_support.h"

namespace ela::kernels {
namespace cuda {

/// What decides how cuBLASLt computes a product: equal keys get the same algorithm.
using GemmKey = std::array<int64_t, 12>;

}  // namespace cuda

/// The pinned memory is a ring of parts; each is used again once its copy is done.
struct CudaDevice::Impl {
  static constexpr size_t kPartBytes = size_t{256} << 10;
  static constexpr size_t kParts = 16;
  static constexpr size_t kGemmWorkspace = size_t{32} << 20;

  int ordinal = 0;
  std::string name, bus_id, uuid;
  size_t total_bytes = 0;
  int multiprocessors = 0;
  cuda::Stream stream;
  const cuda::CublasLt* lt = nullptr;
  cublasLtHandle_t blas = nullptr;
  char* workspace = nullptr;  // [kGemmWorkspace] of the products, which run one after the other
  std::map<cuda::GemmKey, cublasLtMatmulAlgo_t> algorithms;
  char* pinned = nullptr;  // [kParts][kPartBytes]
  std::array<cuda::Event, kParts> copied;
  size_t next_part = 0;

  ~Impl();
};

}  // namespace ela::kernels
