#include <dlfcn.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cublas_lt.h"
#include "kernels/shared_library.h"

namespace ela::kernels::cuda {
namespace {

absl::StatusOr<CublasLt> LoadOnce() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  const std::string why = library == nullptr ? dlerror() : "";
  // The toolkit of the build, which no search path need name.
  if (library == nullptr) {
    library = dlopen(absl::StrCat(ELA_CUDA_LIBRARY_DIR "/", name).c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("a CUDA device needs cuBLAS: ", why,
                     " (install the CUDA libraries, or put their folder into LD_LIBRARY_PATH)"));
  }
  CublasLt lt;
  const bool all =
      FindFunction(library, "cublasLtCreate", &lt.Create) &&
      FindFunction(library, "cublasLtDestroy", &lt.Destroy) &&
      FindFunction(library, "cublasLtGetStatusString", &lt.GetStatusString) &&
      FindFunction(library, "cublasLtMatmulDescCreate", &lt.MatmulDescCreate) &&
      FindFunction(library, "cublasLtMatmulDescDestroy", &lt.MatmulDescDestroy) &&
      FindFunction(library, "cublasLtMatmulDescSetAttribute", &lt.MatmulDescSetAttribute) &&
      FindFunction(library, "cublasLtMatrixLayoutCreate", &lt.MatrixLayoutCreate) &&
      FindFunction(library, "cublasLtMatrixLayoutDestroy", &lt.MatrixLayoutDestroy) &&
      FindFunction(library, "cublasLtMatmulPreferenceCreate", &lt.MatmulPreferenceCreate) &&
      FindFunction(library, "cublasLtMatmulPreferenceDestroy", &lt.MatmulPreferenceDestroy) &&
      FindFunction(library, "cublasLtMatmulPreferenceSetAttribute",
                   &lt.MatmulPreferenceSetAttribute) &&
      FindFunction(library, "cublasLtMatmulAlgoGetHeuristic", &lt.MatmulAlgoGetHeuristic) &&
      FindFunction(library, "cublasLtMatmul", &lt.Matmul);
  if (!all) return absl::FailedPreconditionError(absl::StrCat(name, " lacks functions"));
  return lt;
}

}  // namespace

absl::StatusOr<const CublasLt*> CublasLt::Load() {
  static const auto* const loaded = new absl::StatusOr<CublasLt>(LoadOnce());
  if (!loaded->ok()) return loaded->status();
  return &**loaded;
}

}  // namespace ela::kernels::cuda
