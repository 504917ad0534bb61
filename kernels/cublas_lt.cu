#include <dlfcn.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cublas_lt.h"

namespace ela::kernels::cuda {
namespace {

template <class Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

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
      Find(library, "cublasLtCreate", &lt.Create) &&
      Find(library, "cublasLtDestroy", &lt.Destroy) &&
      Find(library, "cublasLtGetStatusString", &lt.GetStatusString) &&
      Find(library, "cublasLtMatmulDescCreate", &lt.MatmulDescCreate) &&
      Find(library, "cublasLtMatmulDescDestroy", &lt.MatmulDescDestroy) &&
      Find(library, "cublasLtMatmulDescSetAttribute", &lt.MatmulDescSetAttribute) &&
      Find(library, "cublasLtMatrixLayoutCreate", &lt.MatrixLayoutCreate) &&
      Find(library, "cublasLtMatrixLayoutDestroy", &lt.MatrixLayoutDestroy) &&
      Find(library, "cublasLtMatmulPreferenceCreate", &lt.MatmulPreferenceCreate) &&
      Find(library, "cublasLtMatmulPreferenceDestroy", &lt.MatmulPreferenceDestroy) &&
      Find(library, "cublasLtMatmulPreferenceSetAttribute", &lt.MatmulPreferenceSetAttribute) &&
      Find(library, "cublasLtMatmulAlgoGetHeuristic", &lt.MatmulAlgoGetHeuristic) &&
      Find(library, "cublasLtMatmul", &lt.Matmul);
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
