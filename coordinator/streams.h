// Server streams whose reader sets the pace: the next message is made only when the last one has
// left, so a client that never reads costs one message of memory.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/core.h"
#include "coordinator/executor.h"

namespace ela::coordinator {

/// The open streams, by job: woken when the job changes, and now and then for what changes without
/// telling (log files).
class StreamHub {
 public:
  explicit StreamHub(Executor* executor) : executor_(executor) {}

  /// `pump` is run on the executor at every wake, never twice at once is up to the stream. Returns
  /// a key for Remove.
  int64_t Add(const std::string& job_id, std::function<void()> pump);
  void Remove(int64_t key);
  void Wake(const std::string& job_id);
  void WakeAll();
  /// The coordinator stops: every stream is to finish with UNAVAILABLE.
  void StopAll();
  bool stopping() const;
  Executor* executor() { return executor_; }

 private:
  Executor* const executor_;
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_key_ ABSL_GUARDED_BY(mutex_) = 1;
  struct Stream {
    std::string job_id;
    std::function<void()> pump;
  };
  std::map<int64_t, Stream> streams_ ABSL_GUARDED_BY(mutex_);
};

/// Writes what `Cursor::Next` gives until it is finished, the caller leaves or the coordinator
/// stops.
template <typename Cursor, typename Message>
class CursorStream : public grpc::ServerWriteReactor<Message> {
 public:
  CursorStream(const Core* core, StreamHub* hub, Cursor cursor)
      : shared_(std::make_shared<Shared>(this, core, hub, std::move(cursor))) {
    // The hub may run the pump after this reactor is gone; what it touches is shared.
    shared_->key = hub->Add(shared_->cursor.job_id(), [shared = shared_] { shared->Pump(); });
    hub->executor()->Post([shared = shared_] { shared->Pump(); });
  }

  void OnWriteDone(bool ok) override { shared_->Written(ok); }
  void OnCancel() override { shared_->Cancelled(); }
  void OnDone() override {
    shared_->Leave();
    delete this;
  }

 private:
  struct Shared : std::enable_shared_from_this<Shared> {
    Shared(CursorStream* stream, const Core* core, StreamHub* hub, Cursor cursor)
        : reactor(stream), core(core), hub(hub), cursor(std::move(cursor)) {}

    /// Starts the next write unless one is under way.
    void Pump() {
      absl::MutexLock lock(&mutex);
      if (reactor == nullptr || writing || ended) return;
      if (cancelled || hub->stopping()) {
        End(cancelled ? grpc::Status::CANCELLED
                      : grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator stops"));
        return;
      }
      if (std::optional<Message> next = cursor.Next(*core)) {
        message = *std::move(next);
        writing = true;
        reactor->StartWrite(&message);
      } else if (cursor.finished()) {
        End(grpc::Status::OK);
      }
    }
    void End(grpc::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      ended = true;
      reactor->Finish(std::move(status));
    }
    void Written(bool ok) {
      {
        absl::MutexLock lock(&mutex);
        writing = false;
        if (!ok) cancelled = true;
      }
      PumpLater();
    }
    void Cancelled() {
      {
        absl::MutexLock lock(&mutex);
        cancelled = true;
      }
      PumpLater();
    }
    void PumpLater() {
      hub->executor()->Post([self = this->shared_from_this()] { self->Pump(); });
    }
    void Leave() {
      absl::MutexLock lock(&mutex);
      reactor = nullptr;
      hub->Remove(key);
    }

    absl::Mutex mutex;
    CursorStream* reactor ABSL_GUARDED_BY(mutex);
    const Core* const core;
    StreamHub* const hub;
    Cursor cursor;
    int64_t key = 0;
    Message message;
    bool writing ABSL_GUARDED_BY(mutex) = false;
    bool cancelled ABSL_GUARDED_BY(mutex) = false;
    bool ended ABSL_GUARDED_BY(mutex) = false;
  };

  const std::shared_ptr<Shared> shared_;
};

/// A stream that could not be opened.
template <typename Message>
class FailedStream : public grpc::ServerWriteReactor<Message> {
 public:
  explicit FailedStream(grpc::Status status) { this->Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

}  // namespace ela::coordinator
