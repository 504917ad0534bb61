#include "trainer/parallel/mpi_communicator.h"

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "proto/status_macros.h"
#include "trainer/parallel/comm_timer.h"
#include "trainer/parallel/mpi_runtime.h"

namespace ela::trainer {
namespace {

char* At(void* data, size_t offset) { return static_cast<char*>(data) + offset; }
const char* At(const void* data, size_t offset) { return static_cast<const char*>(data) + offset; }

void CopyOwn(void* to, const void* from, size_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}

class MpiPending : public Pending {
 public:
  MpiPending(std::shared_ptr<MpiHandle> handle, const CommunicatorOptions& options, const char* op,
             std::string axis)
      : messages(handle, options),
        runtime_(handle->runtime()),
        statistics_(options.statistics),
        op_(op),
        axis_(std::move(axis)) {
    runtime_->BeginBeside();
  }
  ~MpiPending() override {
    if (waited_) return;
    if (runtime_->failed()) {
      runtime_->EndBeside();  // messages takes them back
    } else {
      Wait().IgnoreError();
    }
  }
  absl::Status Wait() override {
    if (waited_) return status_;
    waited_ = true;
    const CommTimer timer(statistics_.get(), op_, axis_, 0, 0);
    status_ = messages.Wait();
    runtime_->EndBeside();
    return status_;
  }

  MpiMessages messages;

 private:
  std::shared_ptr<MpiRuntime> runtime_;
  std::shared_ptr<CommStatistics> statistics_;
  const char* op_;
  std::string axis_;
  bool waited_ = false;
  absl::Status status_;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<MpiHandle> handle, std::string axis, CommunicatorOptions options)
      : handle_(std::move(handle)), axis_(std::move(axis)), options_(std::move(options)) {}

  int rank() const override { return handle_->rank(); }
  int size() const override { return handle_->size(); }
  const std::string& axis() const override { return axis_; }
  CommStatistics* statistics() const override { return options_.statistics.get(); }

  absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send,
                                                          size_t bytes) override {
    const size_t others = static_cast<size_t>(size()) - 1;
    const CommTimer timer(statistics(), kAllGather, axis_, 1, others * bytes);
    auto pending = NewPending(kAllGather);
    for (int i = 1; i < size(); ++i) {
      const int from = Neighbour(-i);
      pending->messages.Receive(At(recv, static_cast<size_t>(from) * bytes), bytes, from);
    }
    for (int i = 1; i < size(); ++i) pending->messages.Send(send, bytes, Neighbour(i));
    CopyOwn(At(recv, static_cast<size_t>(rank()) * bytes), send, bytes);
    return pending;
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllToAllVStart(
      void* recv, const std::vector<size_t>& recv_bytes, const void* send,
      const std::vector<size_t>& send_bytes) override {
    const size_t ranks = static_cast<size_t>(size()), me = static_cast<size_t>(rank());
    ELA_CHECK(recv_bytes.size() == ranks && send_bytes.size() == ranks &&
                  recv_bytes[me] == send_bytes[me],
              "%zu ranks", ranks);
    const std::vector<size_t> from = Offsets(recv_bytes), to = Offsets(send_bytes);
    const CommTimer timer(statistics(), kAllToAll, axis_, 1, from[ranks] - recv_bytes[me]);
    auto pending = NewPending(kAllToAll);
    for (int i = 1; i < size(); ++i) {
      const size_t p = static_cast<size_t>(Neighbour(-i));
      pending->messages.Receive(At(recv, from[p]), recv_bytes[p], Neighbour(-i));
    }
    for (int i = 1; i < size(); ++i) {
      const size_t p = static_cast<size_t>(Neighbour(i));
      pending->messages.Send(At(send, to[p]), send_bytes[p], Neighbour(i));
    }
    CopyOwn(At(recv, from[me]), At(send, to[me]), recv_bytes[me]);
    return pending;
  }

  absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes, int from,
                                                         const void* send, size_t send_bytes,
                                                         int to) override {
    CheckRank(from);
    CheckRank(to);
    const CommTimer timer(statistics(), kSendRecv, axis_, 1, from == rank() ? 0 : recv_bytes);
    auto pending = NewPending(kSendRecv);
    pending->messages.Receive(recv, recv_bytes, from);
    pending->messages.Send(send, send_bytes, to);
    return pending;
  }

  /// A binomial tree: the root sends log2 P messages, not P.
  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    CheckRank(root);
    const CommTimer timer(statistics(), kBroadcast, axis_, 1, rank() == root ? 0 : bytes);
    const int from_root = (rank() - root + size()) % size();
    int step = 1;
    while (step < size() && (from_root & step) == 0) step *= 2;
    if (from_root != 0) {
      MpiMessages message(handle_, options_);
      message.Receive(data, bytes, Neighbour(-step));
      ELA_RETURN_IF_ERROR(message.Wait());
    }
    MpiMessages messages(handle_, options_);
    for (step /= 2; step > 0; step /= 2) {
      if (from_root + step < size()) messages.Send(data, bytes, Neighbour(step));
    }
    return messages.Wait();
  }

  /// After round i a rank has heard, over others, of its 2^(i+1) - 1 predecessors.
  absl::Status Barrier() override {
    const CommTimer timer(statistics(), kBarrier, axis_, 1, 0);
    for (int step = 1; step < size(); step *= 2) {
      MpiMessages messages(handle_, options_);
      messages.Receive(nullptr, 0, Neighbour(-step));
      messages.Send(nullptr, 0, Neighbour(step));
      ELA_RETURN_IF_ERROR(messages.Wait());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, const std::string& axis) override {
    // MPI splits under the lock, for as long as the last rank takes to come: wait for it before.
    ELA_RETURN_IF_ERROR(Barrier());
    MPI_Comm comm = MPI_COMM_NULL;
    {
      absl::MutexLock lock(&MpiMutex());
      ELA_RETURN_IF_ERROR(
          MpiStatus(MPI_Comm_split(handle_->comm(), color, rank(), &comm), "MPI_Comm_split"));
    }
    return std::make_unique<MpiCommunicator>(std::make_shared<MpiHandle>(handle_->runtime(), comm),
                                             axis, options_);
  }

  void Abort(int exit_code) override {
    absl::MutexLock lock(&MpiMutex());
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
  void CheckRank(int p) const { ELA_CHECK(p >= 0 && p < size(), "rank %d of %d", p, size()); }
  int Neighbour(int distance) const { return (rank() + distance + size()) % size(); }
  std::unique_ptr<MpiPending> NewPending(const char* op) const {
    return std::make_unique<MpiPending>(handle_, options_, op, axis_);
  }
  static std::vector<size_t> Offsets(const std::vector<size_t>& bytes) {
    std::vector<size_t> offsets(bytes.size() + 1);
    std::partial_sum(bytes.begin(), bytes.end(), offsets.begin() + 1);
    return offsets;
  }

  std::shared_ptr<MpiHandle> handle_;
  std::string axis_;
  CommunicatorOptions options_;
};

absl::Status CheckWorld(int world, int expected) {
  if (expected == 0 || world == expected) return absl::OkStatus();
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  absl::MutexLock lock(&MpiMutex());
  MPI_Get_library_version(version, &length);
  const std::string library(version, std::strcspn(version, ",\n"));
  return absl::FailedPreconditionError(
      absl::StrCat("the job's mesh has ", expected,
                   " ranks (parallelism.data x parallelism.sequence), but MPI "
                   "started this process in a world of ",
                   world, ": run `mpirun -n ", expected, " ...` (Slurm: `srun -n ", expected,
                   " --mpi=pmix ...`) with the mpirun of ", library,
                   ", which this program is linked with, or change the mesh"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiWorld(const CommunicatorOptions& options) {
  ELA_ASSIGN_OR_RETURN(const std::shared_ptr<MpiRuntime> runtime, MpiRuntime::Acquire());
  MPI_Comm comm = MPI_COMM_NULL;
  {
    // A communicator of its own: nothing else in the process can take its messages.
    absl::MutexLock lock(&MpiMutex());
    ELA_RETURN_IF_ERROR(MpiStatus(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup"));
  }
  auto handle = std::make_shared<MpiHandle>(runtime, comm);
  ELA_RETURN_IF_ERROR(CheckWorld(handle->size(), options.expected_world));
  return std::make_unique<MpiCommunicator>(std::move(handle), "world", options);
}

}  // namespace ela::trainer
