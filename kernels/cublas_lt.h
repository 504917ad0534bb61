// cuBLASLt, loaded when a device is opened. Linked in, its thread-local storage (92 KiB) would be
// taken off the stack of every thread, more than the small stacks of an HTTP server's threads hold;
// and no program would start on a machine without it.
#pragma once

#include <cublasLt.h>

#include "absl/status/statusor.h"

namespace ela::kernels::cuda {

/// The functions that are used.
struct CublasLt {
  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtGetStatusString) GetStatusString;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmul) Matmul;

  /// The process's one copy; it stays loaded. FailedPrecondition, with what to do, if it can't be
  /// loaded.
  static absl::StatusOr<const CublasLt*> Load();
};

}  // namespace ela::kernels::cuda
