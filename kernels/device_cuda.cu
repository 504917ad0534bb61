// The CUDA device: opened once per rank; see device.h.
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/device_impl.h"

namespace ela::kernels {
namespace cuda {
namespace {

constexpr int kWordsPerLaunch = 400;  // of the 4 KiB of parameters that every card takes

struct Words {
  int64_t word[kWordsPerLaunch];
};

__global__ void WriteWords(int64_t* to, Words words, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    to[i] = words.word[i];
  }
}

}  // namespace

Stream MakeStream() {
  cudaStream_t stream;
  ELA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

Event MakeEvent() {
  cudaEvent_t event;
  ELA_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

int NumMultiprocessors(const Context& ctx) { return ctx.device->impl().multiprocessors; }

const int64_t* UploadWords(const Context& ctx, const int64_t* words, int64_t count) {
  int64_t* device = TakeScratch<int64_t>(ctx, count);
  for (int64_t i = 0; i < count; i += kWordsPerLaunch) {
    Words part;
    const int n = static_cast<int>(std::min<int64_t>(kWordsPerLaunch, count - i));
    std::memcpy(part.word, words + i, static_cast<size_t>(n) * sizeof(int64_t));
    WriteWords<<<1, 128, 0, StreamOf(ctx)>>>(device + i, part, n);
  }
  CheckLaunch("WriteWords");
  return device;
}

}  // namespace cuda

int NumCudaDevices() {
  int count = 0;
  const bool counted = cudaGetDeviceCount(&count) == cudaSuccess;
  cudaGetLastError();
  return counted ? count : 0;
}

std::string WhyNoCudaDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return absl::StrCat("no CUDA device: ", cudaGetErrorString(error));
  return absl::StrCat(count, " CUDA devices");
}

CudaDevice::Impl::~Impl() {
  if (stream.get() != nullptr) cudaStreamSynchronize(stream.get());
  if (blas != nullptr) lt->Destroy(blas);
  if (workspace != nullptr) cudaFree(workspace);
  if (pinned != nullptr) cudaFreeHost(pinned);
}

CudaDevice::CudaDevice(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaDevice::~CudaDevice() = default;

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  const auto failed = [&](const char* what, const char* why) {
    cudaGetLastError();  // told here; the next launch must not find it
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", ordinal, ": ", what, ": ", why));
  };
  auto impl = std::make_unique<Impl>();
  impl->ordinal = ordinal;
  cudaDeviceProp properties;
  cudaError_t error = cudaSetDevice(ordinal);
  if (error != cudaSuccess) return failed("cudaSetDevice", cudaGetErrorString(error));
  error = cudaGetDeviceProperties(&properties, ordinal);
  if (error != cudaSuccess) return failed("cudaGetDeviceProperties", cudaGetErrorString(error));
  if (properties.major < 8) return failed(properties.name, "compute capability 8.0 is needed");
  char bus_id[32] = {};
  error = cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, ordinal);
  if (error != cudaSuccess) return failed("cudaDeviceGetPCIBusId", cudaGetErrorString(error));
  impl->name = properties.name;
  impl->bus_id = bus_id;
  impl->uuid = absl::BytesToHexString({properties.uuid.bytes, sizeof properties.uuid.bytes});
  impl->total_bytes = properties.totalGlobalMem;
  impl->multiprocessors = properties.multiProcessorCount;
  error = cudaMalloc(reinterpret_cast<void**>(&impl->workspace), Impl::kGemmWorkspace);
  if (error != cudaSuccess) return failed("the products' workspace", cudaGetErrorString(error));
  error = cudaMallocHost(reinterpret_cast<void**>(&impl->pinned), Impl::kParts * Impl::kPartBytes);
  if (error != cudaSuccess) return failed("pinned memory", cudaGetErrorString(error));
  const absl::StatusOr<const cuda::CublasLt*> lt = cuda::CublasLt::Load();
  if (!lt.ok()) return lt.status();
  impl->lt = *lt;
  const cublasStatus_t status = impl->lt->Create(&impl->blas);
  if (status != CUBLAS_STATUS_SUCCESS) return failed("cuBLASLt", impl->lt->GetStatusString(status));
  impl->stream = cuda::MakeStream();
  for (cuda::Event& event : impl->copied) event = cuda::MakeEvent();
  return std::unique_ptr<CudaDevice>(new CudaDevice(std::move(impl)));
}

int CudaDevice::ordinal() const { return impl_->ordinal; }
const std::string& CudaDevice::name() const { return impl_->name; }
const std::string& CudaDevice::bus_id() const { return impl_->bus_id; }
const std::string& CudaDevice::uuid() const { return impl_->uuid; }
void* CudaDevice::stream() const { return impl_->stream.get(); }
size_t CudaDevice::total_bytes() const { return impl_->total_bytes; }

size_t CudaDevice::free_bytes() const {
  size_t free = 0, total = 0;
  ELA_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaDevice::Bind() const { ELA_CUDA_CHECK(cudaSetDevice(impl_->ordinal)); }
void CudaDevice::Synchronize() const { ELA_CUDA_CHECK(cudaStreamSynchronize(impl_->stream.get())); }

void CudaDevice::CopyIn(void* to, const void* from, size_t bytes) {
  for (size_t at = 0; at < bytes; at += Impl::kPartBytes) {
    const size_t n = std::min(bytes - at, Impl::kPartBytes), part = impl_->next_part;
    const cudaEvent_t copied = impl_->copied[part].get();
    ELA_CUDA_CHECK(cudaEventSynchronize(copied));
    char* pinned = impl_->pinned + part * Impl::kPartBytes;
    std::memcpy(pinned, static_cast<const char*>(from) + at, n);
    ELA_CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(to) + at, pinned, n, cudaMemcpyHostToDevice,
                                   impl_->stream.get()));
    ELA_CUDA_CHECK(cudaEventRecord(copied, impl_->stream.get()));
    impl_->next_part = (part + 1) % Impl::kParts;
  }
}

void CudaDevice::CopyOut(void* to, const void* from, size_t bytes) {
  ELA_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, impl_->stream.get()));
  Synchronize();
}

StreamMoment::StreamMoment(const CudaDevice& device) {
  cudaEvent_t event;
  ELA_CUDA_CHECK(cudaEventCreate(&event));
  ELA_CUDA_CHECK(cudaEventRecord(event, device.impl().stream.get()));
  event_ = event;
}

StreamMoment::~StreamMoment() {
  if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

StreamMoment::StreamMoment(StreamMoment&& other) noexcept
    : event_(std::exchange(other.event_, nullptr)) {}

StreamMoment& StreamMoment::operator=(StreamMoment&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}

bool StreamMoment::Reached() const {
  const cudaError_t state = cudaEventQuery(static_cast<cudaEvent_t>(event_));
  ELA_CHECK(state == cudaSuccess || state == cudaErrorNotReady, "%s", cudaGetErrorString(state));
  return state == cudaSuccess;
}

double StreamMoment::SecondsSince(const StreamMoment& earlier) const {
  const auto end = static_cast<cudaEvent_t>(event_);
  float ms = 0;
  ELA_CUDA_CHECK(cudaEventSynchronize(end));
  ELA_CUDA_CHECK(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier.event_), end));
  return 1e-3 * static_cast<double>(ms);
}

CudaGraph::~CudaGraph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
}

CudaGraph::CudaGraph(CudaGraph&& other) noexcept
    : graph_(std::exchange(other.graph_, nullptr)), stream_(other.stream_) {}

CudaGraph& CudaGraph::operator=(CudaGraph&& other) noexcept {
  std::swap(graph_, other.graph_);
  std::swap(stream_, other.stream_);
  return *this;
}

absl::StatusOr<CudaGraph> CudaGraph::Record(const CudaDevice& device,
                                            const std::function<absl::Status()>& work) {
  const cudaStream_t stream = device.impl().stream.get();
  cudaGraph_t recorded = nullptr;
  ELA_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const absl::Status status = work();
  ELA_CUDA_CHECK(cudaStreamEndCapture(stream, &recorded));
  CudaGraph graph;
  if (status.ok()) {
    cudaGraphExec_t executable = nullptr;
    ELA_CUDA_CHECK(cudaGraphInstantiate(&executable, recorded, 0));
    graph.graph_ = executable;
    graph.stream_ = stream;
  }
  ELA_CUDA_CHECK(cudaGraphDestroy(recorded));
  if (!status.ok()) return status;
  return graph;
}

void CudaGraph::Replay() const {
  ELA_CUDA_CHECK(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), static_cast<cudaStream_t>(stream_)));
}

TraceRange::TraceRange(const char* name) { nvtxRangePushA(name); }
TraceRange::~TraceRange() { nvtxRangePop(); }

namespace internal {

char* AllocateDevice(size_t bytes) {
  char* memory = nullptr;
  const cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&memory), bytes);
  if (error != cudaSuccess) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    ELA_CHECK(false, "%zu bytes of device memory: %s (%zu of %zu bytes are free)", bytes,
              cudaGetErrorString(error), free, total);
  }
  return memory;
}

void FreeDevice(char* memory) { cudaFree(memory); }

void ClearDevice(const Context& ctx, void* memory, size_t bytes) {
  ELA_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, cuda::StreamOf(ctx)));
}

}  // namespace internal
}  // namespace ela::kernels
