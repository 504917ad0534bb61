// cuBLASLt is column-major: a row-major c = a b is computed as c^T = b^T a^T, without moving
// anything. Algorithms come from its heuristics, once per kind of product, and are remembered by
// the device.
#include <algorithm>

#include "kernels/device_gemm.h"
#include "kernels/device_impl.h"

namespace ela::kernels::cuda {
namespace {

#define ELA_CUBLAS_CHECK(lt, call)                                                               \
  do {                                                                                           \
    const cublasStatus_t status_ = (lt).call;                                                    \
    ELA_CHECK(status_ == CUBLAS_STATUS_SUCCESS, "%s: %s", #call, (lt).GetStatusString(status_)); \
  } while (false)

template <class Handle>
class Description {
 public:
  explicit Description(cublasStatus_t (*destroy)(Handle)) : destroy_(destroy) {}
  ~Description() {
    if (handle_ != nullptr) destroy_(handle_);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  Handle* out() { return &handle_; }
  Handle get() const { return handle_; }

 private:
  cublasStatus_t (*const destroy_)(Handle);
  Handle handle_ = nullptr;
};

cudaDataType_t TypeOf(DType dtype) {
  ELA_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "a product of dtype %d",
            static_cast<int>(dtype));
  return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

uint32_t AlignmentOf(const void* p) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 16;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

/// What the library calls C: read where something is added, of any content where not.
const void* AddedOf(const DeviceGemm& p) { return p.added != nullptr ? p.added : p.c; }

/// The product as cuBLASLt sees it: first operand b, second a.
class Described {
 public:
  Described(const CublasLt& lt, const DeviceGemm& p)
      : operation(lt.MatmulDescDestroy),
        first(lt.MatrixLayoutDestroy),
        second(lt.MatrixLayoutDestroy),
        added(lt.MatrixLayoutDestroy),
        result(lt.MatrixLayoutDestroy),
        lt_(lt) {
    const cublasOperation_t first_op = p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second_op = p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    ELA_CUBLAS_CHECK(lt_, MatmulDescCreate(operation.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Set(CUBLASLT_MATMUL_DESC_TRANSA, first_op);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, second_op);
    Make(&first, TypeOf(p.input), p.b_transposed ? p.k : p.n, p.b_transposed ? p.n : p.k, p.ldb);
    Make(&second, TypeOf(p.input), p.a_transposed ? p.m : p.k, p.a_transposed ? p.k : p.m, p.lda);
    Make(&added, TypeOf(p.output), p.n, p.m, p.added != nullptr ? p.ld_added : p.ldc);
    Make(&result, TypeOf(p.output), p.n, p.m, p.ldc);
  }

  Description<cublasLtMatmulDesc_t> operation;
  Description<cublasLtMatrixLayout_t> first, second, added, result;

 private:
  void Set(cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    ELA_CUBLAS_CHECK(lt_, MatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value));
  }
  void Make(Description<cublasLtMatrixLayout_t>* layout, cudaDataType_t type, int64_t rows,
            int64_t columns, int64_t ld) {
    ELA_CUBLAS_CHECK(lt_, MatrixLayoutCreate(layout->out(), type, static_cast<uint64_t>(rows),
                                             static_cast<uint64_t>(columns), ld));
  }

  const CublasLt& lt_;
};

/// Every sum's order fixed: no reduction in place, whose parts arrive in any order.
constexpr uint32_t kReductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

cublasLtMatmulAlgo_t ChooseAlgorithm(CudaDevice::Impl& device, const DeviceGemm& p,
                                     const Described& d) {
  const CublasLt& lt = *device.lt;
  Description<cublasLtMatmulPreference_t> preference(lt.MatmulPreferenceDestroy);
  ELA_CUBLAS_CHECK(lt, MatmulPreferenceCreate(preference.out()));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    ELA_CUBLAS_CHECK(
        lt, MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, size_t{CudaDevice::Impl::kGemmWorkspace});
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, kReductions);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(p.b));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(p.a));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, AlignmentOf(AddedOf(p)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(p.c));
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  const cublasStatus_t status =
      lt.MatmulAlgoGetHeuristic(device.blas, d.operation.get(), d.first.get(), d.second.get(),
                                d.added.get(), d.result.get(), preference.get(), 1, &found, &count);
  ELA_CHECK(status == CUBLAS_STATUS_SUCCESS && count == 1,
            "no algorithm for a product of %lld x %lld x %lld (lda %lld, ldb %lld, ldc %lld): %s",
            static_cast<long long>(p.m), static_cast<long long>(p.n), static_cast<long long>(p.k),
            static_cast<long long>(p.lda), static_cast<long long>(p.ldb),
            static_cast<long long>(p.ldc), lt.GetStatusString(status));
  return found.algo;
}

GemmKey KeyOf(const DeviceGemm& p) {
  const int64_t flags = (p.a_transposed ? 1 : 0) + (p.b_transposed ? 2 : 0) +
                        (p.added != nullptr ? 4 : 0) + (p.input == DType::kF32 ? 8 : 0) +
                        (p.output == DType::kF32 ? 16 : 0);
  return {p.m,
          p.n,
          p.k,
          p.lda,
          p.ldb,
          p.ldc,
          p.ld_added,
          AlignmentOf(p.a),
          AlignmentOf(p.b),
          AlignmentOf(p.c),
          AlignmentOf(AddedOf(p)),
          flags};
}

/// n itself if small, else a little more: few different sizes, each at most a quarter too large.
int64_t RoundedSize(int64_t n) {
  int64_t step = 32;
  while (step * 8 <= n) step *= 2;
  return n <= 128 ? n : CeilDiv(n, step) * step;
}

const cublasLtMatmulAlgo_t& AlgorithmFor(CudaDevice::Impl& device, const DeviceGemm& p) {
  constexpr size_t kMostRemembered = 4096;
  const GemmKey key = KeyOf(p);
  auto found = device.algorithms.find(key);
  if (found == device.algorithms.end()) {
    if (device.algorithms.size() >= kMostRemembered) device.algorithms.clear();
    found =
        device.algorithms.emplace(key, ChooseAlgorithm(device, p, Described(*device.lt, p))).first;
  }
  return found->second;
}

cublasStatus_t Run(const Context& ctx, const DeviceGemm& p, const cublasLtMatmulAlgo_t& algorithm) {
  const CudaDevice::Impl& device = ctx.device->impl();
  const Described d(*device.lt, p);
  const float alpha = 1, beta = p.added != nullptr ? 1 : 0;
  return device.lt->Matmul(device.blas, d.operation.get(), &alpha, p.b, d.first.get(), p.a,
                           d.second.get(), &beta, AddedOf(p), d.added.get(), p.c, d.result.get(),
                           &algorithm, device.workspace, CudaDevice::Impl::kGemmWorkspace,
                           StreamOf(ctx));
}

}  // namespace

void Gemm(const Context& ctx, const DeviceGemm& p) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {
    if (p.added == p.c) return;
    const size_t size = SizeOf(p.output), pitch = static_cast<size_t>(p.ldc) * size;
    const size_t width = static_cast<size_t>(p.n) * size, height = static_cast<size_t>(p.m);
    if (p.added == nullptr) {
      ELA_CUDA_CHECK(cudaMemset2DAsync(p.c, pitch, 0, width, height, StreamOf(ctx)));
    } else {
      ELA_CUDA_CHECK(cudaMemcpy2DAsync(p.c, pitch, p.added, static_cast<size_t>(p.ld_added) * size,
                                       width, height, cudaMemcpyDeviceToDevice, StreamOf(ctx)));
    }
    return;
  }
  if (ThinGemm(ctx, p)) return;
  CudaDevice::Impl& device = ctx.device->impl();
  if (p.ragged) {
    DeviceGemm about = p;
    int64_t& rows = p.a_transposed ? about.k : about.m;
    rows = RoundedSize(rows);
    if (Run(ctx, p, AlgorithmFor(device, about)) == CUBLAS_STATUS_SUCCESS) return;
  }
  const cublasStatus_t status = Run(ctx, p, AlgorithmFor(device, p));
  ELA_CHECK(status == CUBLAS_STATUS_SUCCESS, "a product: %s", device.lt->GetStatusString(status));
}

}  // namespace ela::kernels::cuda
