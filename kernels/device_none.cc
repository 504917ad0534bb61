// The device of builds without a CUDA toolkit: there is none.
#include "absl/status/status.h"
#include "kernels/check.h"
#include "kernels/device.h"

namespace ela::kernels {

struct CudaDevice::Impl {
  std::string name, bus_id, uuid;
};

int NumCudaDevices() { return 0; }

std::string WhyNoCudaDevice() { return "this build has no CUDA back end (no toolkit was found)"; }

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  return absl::FailedPreconditionError(WhyNoCudaDevice());
}
CudaDevice::CudaDevice(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaDevice::~CudaDevice() = default;
int CudaDevice::ordinal() const { return 0; }
const std::string& CudaDevice::name() const { return impl_->name; }
const std::string& CudaDevice::bus_id() const { return impl_->bus_id; }
const std::string& CudaDevice::uuid() const { return impl_->uuid; }
void* CudaDevice::stream() const { return nullptr; }
size_t CudaDevice::total_bytes() const { return 0; }
size_t CudaDevice::free_bytes() const { return 0; }
void CudaDevice::Bind() const {}
void CudaDevice::Synchronize() const {}
void CudaDevice::CopyIn(void* to, const void* from, size_t bytes) {}
void CudaDevice::CopyOut(void* to, const void* from, size_t bytes) {}

StreamMoment::StreamMoment(const CudaDevice& device) {}
StreamMoment::~StreamMoment() = default;
StreamMoment::StreamMoment(StreamMoment&& other) noexcept = default;
StreamMoment& StreamMoment::operator=(StreamMoment&& other) noexcept = default;
bool StreamMoment::Reached() const { return true; }
double StreamMoment::SecondsSince(const StreamMoment& earlier) const { return 0; }

CudaGraph::~CudaGraph() = default;
CudaGraph::CudaGraph(CudaGraph&& other) noexcept = default;
CudaGraph& CudaGraph::operator=(CudaGraph&& other) noexcept = default;
absl::StatusOr<CudaGraph> CudaGraph::Record(const CudaDevice& device,
                                            const std::function<absl::Status()>& work) {
  return absl::FailedPreconditionError(WhyNoCudaDevice());
}
void CudaGraph::Replay() const {}

TraceRange::TraceRange(const char* name) {}
TraceRange::~TraceRange() = default;

namespace internal {

char* AllocateDevice(size_t bytes) {
  ELA_CHECK(false, "%zu bytes: %s", bytes, WhyNoCudaDevice().c_str());
  return nullptr;
}
void FreeDevice(char* memory) {}
void ClearDevice(const Context& ctx, void* memory, size_t bytes) {}

}  // namespace internal
}  // namespace ela::kernels
