// MPI of this process: started once, one call at a time, and messages that wait without a core.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// Held around every MPI call: MPI runs at the level SERIALIZED.
absl::Mutex& MpiMutex();

/// OK, or Unavailable with MPI's text: "MPI_Isend: ...".
absl::Status MpiStatus(int code, const char* call);

/// Alive while MPI is in use. MPI moves long messages only inside of calls: while messages are
/// under way that nobody waits for, a thread of the runtime calls it a thousand times a second.
class MpiRuntime {
 public:
  /// Starts MPI with the first call. FailedPrecondition after MPI was finished: a process can't
  /// start it twice.
  static absl::StatusOr<std::shared_ptr<MpiRuntime>> Acquire();
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  /// Every BeginBeside is followed by an EndBeside: messages are under way between the two.
  void BeginBeside();
  void EndBeside();

  /// Once a wait has failed nobody waits again for what only has to end: the job is over, and every
  /// such wait would take the timeout once more.
  void SetFailed() { failed_ = true; }
  bool failed() const { return failed_; }

 private:
  explicit MpiRuntime(bool started_here) ABSL_EXCLUSIVE_LOCKS_REQUIRED(MpiMutex());
  void Progress() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return beside_ > 0 || stopping_; }

  const bool started_here_;  // else whoever started MPI finishes it
  MPI_Comm alone_ = MPI_COMM_NULL;
  std::atomic<bool> failed_ = false;
  absl::Mutex mutex_;
  int beside_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // started by the first BeginBeside
};

/// A communicator of MPI's, freed with the object.
class MpiHandle {
 public:
  MpiHandle(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm);
  ~MpiHandle();
  MpiHandle(const MpiHandle&) = delete;
  MpiHandle& operator=(const MpiHandle&) = delete;
  const std::shared_ptr<MpiRuntime>& runtime() const { return runtime_; }
  MPI_Comm comm() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  std::shared_ptr<MpiRuntime> runtime_;
  MPI_Comm comm_;
  int rank_ = 0, size_ = 1;
};

/// Messages under way: any number of Receive and Send, then one Wait. Between two ranks they match
/// in the order of the calls, over all objects of one communicator. A message longer than
/// max_message_bytes of the options goes in parts. The first error is Wait's.
class MpiMessages {
 public:
  MpiMessages(std::shared_ptr<MpiHandle> handle, const CommunicatorOptions& options);
  ~MpiMessages();  // takes back what has not been waited for
  MpiMessages(const MpiMessages&) = delete;
  MpiMessages& operator=(const MpiMessages&) = delete;

  void Receive(void* recv, size_t bytes, int from);
  void Send(const void* send, size_t bytes, int to);
  /// Yields its core, then sleeps for some 20 us at a time, until all messages are done. Internal
  /// if a rank sent another size than this one expects; Unavailable if none of them is done within
  /// the timeout of the options, after the start or the last one that was.
  absl::Status Wait();

 private:
  struct Part {
    size_t bytes;
    int from;  // -1: sent
  };
  template <class Post>
  void InParts(size_t bytes, int from, const char* call, const Post& post);
  bool Done() const { return open_ == 0; }
  absl::Status TimedOut() const;
  void Poll() ABSL_LOCKS_EXCLUDED(MpiMutex());
  void Finish(size_t part, const MPI_Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(MpiMutex());
  void Fail(const absl::Status& status) { status_.Update(status); }

  std::shared_ptr<MpiHandle> handle_;
  size_t max_message_bytes_;
  double timeout_seconds_;
  std::vector<MPI_Request> requests_;
  std::vector<Part> parts_;  // of each request
  size_t open_ = 0;          // requests that are not done
  absl::Status status_;
};

}  // namespace ela::trainer
