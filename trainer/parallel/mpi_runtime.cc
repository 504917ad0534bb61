#include "trainer/parallel/mpi_runtime.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdint>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

constexpr int kTag = 1, kNoTag = 2;
// A partner that computes on another core is soon there; one that needs this core gets it at once.
constexpr int kYields = 200;
constexpr int64_t kSleepNs = 20'000;
// Between two looks at what is under way beside: sockets hold some megabytes meanwhile.
constexpr int64_t kProgressNs = 1'000'000;

std::weak_ptr<MpiRuntime>& Current() ABSL_EXCLUSIVE_LOCKS_REQUIRED(MpiMutex()) {
  static std::weak_ptr<MpiRuntime> current;
  return current;
}

void GiveCoreAway(int polls) {
  if (polls < kYields) {
    std::this_thread::yield();
    return;
  }
  const timespec pause = {0, kSleepNs};
  nanosleep(&pause, nullptr);
}

}  // namespace

absl::Mutex& MpiMutex() {
  static absl::Mutex mutex(absl::kConstInit);
  return mutex;
}

absl::Status MpiStatus(int code, const char* call) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) {
    return absl::UnavailableError(absl::StrCat(call, ": MPI error ", code));
  }
  return absl::UnavailableError(absl::StrCat(call, ": ", std::string(text, text + length)));
}

absl::StatusOr<std::shared_ptr<MpiRuntime>> MpiRuntime::Acquire() {
  absl::MutexLock lock(&MpiMutex());
  if (auto current = Current().lock()) return current;
  int started = 0, finished = 0, level = MPI_THREAD_SINGLE;
  ELA_RETURN_IF_ERROR(MpiStatus(MPI_Initialized(&started), "MPI_Initialized"));
  ELA_RETURN_IF_ERROR(MpiStatus(MPI_Finalized(&finished), "MPI_Finalized"));
  if (finished != 0) {
    return absl::FailedPreconditionError(
        "MPI has been finished in this process and can't be started again: keep one communicator "
        "until the end");
  }
  if (started == 0) {
    ELA_RETURN_IF_ERROR(MpiStatus(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level),
                                  "MPI_Init_thread"));
  } else {
    ELA_RETURN_IF_ERROR(MpiStatus(MPI_Query_thread(&level), "MPI_Query_thread"));
  }
  if (level < MPI_THREAD_SERIALIZED) {
    if (started == 0) MPI_Finalize();
    return absl::FailedPreconditionError(
        absl::StrCat("MPI offers the thread level ", level, ", MPI_THREAD_SERIALIZED (",
                     MPI_THREAD_SERIALIZED, ") is needed: use an MPI that was built with threads"));
  }
  const std::shared_ptr<MpiRuntime> runtime(new MpiRuntime(started == 0));
  Current() = runtime;
  return runtime;
}

MpiRuntime::MpiRuntime(bool started_here) : started_here_(started_here) {
  MPI_Comm_dup(MPI_COMM_SELF, &alone_);
  MPI_Comm_set_errhandler(alone_, MPI_ERRORS_RETURN);
}

MpiRuntime::~MpiRuntime() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  absl::MutexLock lock(&MpiMutex());
  MPI_Comm_free(&alone_);
  if (started_here_) MPI_Finalize();
}

void MpiRuntime::BeginBeside() {
  absl::MutexLock lock(&mutex_);
  ++beside_;
  if (!thread_.joinable()) thread_ = std::thread([this] { Progress(); });
}

void MpiRuntime::EndBeside() {
  absl::MutexLock lock(&mutex_);
  --beside_;
}

void MpiRuntime::Progress() {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &MpiRuntime::HasWork));
      if (stopping_) return;
    }
    {
      // A message of this tag never comes: looking for it moves the others.
      absl::MutexLock lock(&MpiMutex());
      int found = 0;
      MPI_Iprobe(MPI_ANY_SOURCE, kNoTag, alone_, &found, MPI_STATUS_IGNORE);
    }
    const timespec pause = {0, kProgressNs};
    nanosleep(&pause, nullptr);
  }
}

MpiHandle::MpiHandle(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm)
    : runtime_(std::move(runtime)), comm_(comm) {
  absl::MutexLock lock(&MpiMutex());
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiHandle::~MpiHandle() {
  absl::MutexLock lock(&MpiMutex());
  MPI_Comm_free(&comm_);
}

MpiMessages::MpiMessages(std::shared_ptr<MpiHandle> handle, const CommunicatorOptions& options)
    : handle_(std::move(handle)),
      max_message_bytes_(std::clamp(options.max_message_bytes, size_t{1}, size_t{INT_MAX})),
      timeout_seconds_(options.timeout_seconds) {}

MpiMessages::~MpiMessages() {
  absl::MutexLock lock(&MpiMutex());
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    if (parts_[i].from >= 0) MPI_Cancel(&requests_[i]);
    MPI_Request_free(&requests_[i]);
  }
}

// A message of no bytes is sent too: the other side finds out if it expects some.
template <class Post>
void MpiMessages::InParts(size_t bytes, int from, const char* call, const Post& post) {
  size_t offset = 0;
  absl::MutexLock lock(&MpiMutex());
  do {
    const size_t part = std::min(bytes - offset, max_message_bytes_);
    MPI_Request request = MPI_REQUEST_NULL;
    const absl::Status posted = MpiStatus(post(offset, static_cast<int>(part), &request), call);
    if (!posted.ok()) return Fail(posted);
    requests_.push_back(request);
    parts_.push_back({part, from});
    ++open_;
    offset += part;
  } while (offset < bytes);
}

void MpiMessages::Receive(void* recv, size_t bytes, int from) {
  InParts(bytes, from, "MPI_Irecv", [&](size_t offset, int part, MPI_Request* request) {
    return MPI_Irecv(static_cast<char*>(recv) + offset, part, MPI_BYTE, from, kTag, handle_->comm(),
                     request);
  });
}

void MpiMessages::Send(const void* send, size_t bytes, int to) {
  InParts(bytes, /*from=*/-1, "MPI_Isend", [&](size_t offset, int part, MPI_Request* request) {
    return MPI_Isend(static_cast<const char*>(send) + offset, part, MPI_BYTE, to, kTag,
                     handle_->comm(), request);
  });
}

absl::Status MpiMessages::Wait() {
  using Clock = std::chrono::steady_clock;
  size_t open = open_;
  Clock::time_point last = Clock::now();  // that a message was done
  for (int polls = 0; status_.ok() && !Done(); ++polls) {
    Poll();
    if (open_ < open) polls = 0, last = Clock::now();
    open = open_;
    if (!status_.ok() || Done()) break;
    const std::chrono::duration<double> waited = Clock::now() - last;
    if (timeout_seconds_ > 0 && waited.count() > timeout_seconds_) Fail(TimedOut());
    GiveCoreAway(polls);
  }
  if (!status_.ok()) handle_->runtime()->SetFailed();
  return status_;
}

absl::Status MpiMessages::TimedOut() const {
  size_t i = 0;
  while (i + 1 < requests_.size() && (requests_[i] == MPI_REQUEST_NULL || parts_[i].from < 0)) ++i;
  const std::string who =
      parts_[i].from < 0 ? "another rank" : absl::StrCat("rank ", parts_[i].from);
  return absl::UnavailableError(absl::StrCat("MPI: rank ", handle_->rank(), " waited for ", who,
                                             " for ", timeout_seconds_,
                                             " s: it is gone, stopped or makes other calls"));
}

void MpiMessages::Poll() {
  absl::MutexLock lock(&MpiMutex());
  std::vector<int> done(requests_.size());
  std::vector<MPI_Status> statuses(requests_.size());
  int count = 0;
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                done.data(), statuses.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) Fail(MpiStatus(code, "MPI_Testsome"));
  for (int i = 0; i < count; ++i) {
    const size_t part = static_cast<size_t>(done[static_cast<size_t>(i)]);
    MPI_Status& status = statuses[static_cast<size_t>(i)];
    if (code == MPI_SUCCESS) status.MPI_ERROR = MPI_SUCCESS;  // else it is not set
    Finish(part, status);
  }
}

void MpiMessages::Finish(size_t part, const MPI_Status& status) {
  --open_;
  const auto [bytes, from] = parts_[part];
  if (status.MPI_ERROR != MPI_SUCCESS) {
    return Fail(MpiStatus(status.MPI_ERROR, from < 0 ? "MPI_Isend" : "MPI_Irecv"));
  }
  int received = 0;
  if (from >= 0 && MPI_Get_count(&status, MPI_BYTE, &received) == MPI_SUCCESS &&
      static_cast<size_t>(received) != bytes) {
    Fail(absl::InternalError(absl::StrCat("rank ", from, " sent ", received, " bytes where rank ",
                                          handle_->rank(), " expects ", bytes)));
  }
}

}  // namespace ela::trainer
