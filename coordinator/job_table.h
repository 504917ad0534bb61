// All jobs: the records in the store, a copy of them in memory, and what is known of running ones.
// The one place where a decision becomes true: one synced batch first, then memory, then whoever
// listens, then the reply.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "checkpoints/kv/key_value_store.h"
#include "coordinator/clock.h"
#include "coordinator/lifecycle.h"
#include "coordinator/live.h"

namespace ela::coordinator {

using RecordPtr = std::shared_ptr<const v1::JobRecord>;

/// Thread-safe. Readers never wait for the disk.
class JobTable {
 public:
  /// Loads every job. `store` and `clock` must outlive the table. Errors: the store's; DataLoss for
  /// a record that cannot be read, with its key.
  static absl::StatusOr<std::unique_ptr<JobTable>> Open(kv::KeyValueStore* store,
                                                        const Clock* clock);

  /// Called after each change and each reported step with the job's id, without locks held. Set
  /// before use.
  void SetListener(std::function<void(const std::string& id)> listener);

  /// What a decision returns: a change, or nothing to change, or why not.
  using Decision = absl::StatusOr<std::optional<Change>>;
  /// Decides on the newest record of a job, alone among all writers, and makes the change true.
  /// Returns the record after it. NotFound when there is no such job; the store's error when it
  /// could not be written: then nothing has changed.
  absl::StatusOr<RecordPtr> Update(
      const std::string& id, const std::function<Decision(const v1::JobRecord&, Instant)>& decide);

  /// Adds a job. When `client_key` (not empty) is known: the job it stands for if the fingerprint
  /// is the same, else AlreadyExists. `existed` tells which.
  absl::StatusOr<RecordPtr> Create(
      const std::string& client_key, const std::string& fingerprint,
      const std::function<Change(int64_t queue_number, Instant)>& decide, bool* existed);

  /// Null when there is none.
  RecordPtr Find(const std::string& id) const;
  /// Id, or name of the newest job so named, or a unique prefix of an id (3 characters at least).
  /// NotFound, or InvalidArgument when several jobs match.
  absl::StatusOr<RecordPtr> Resolve(const std::string& what) const;
  /// In order of submission.
  std::vector<RecordPtr> All() const;
  std::vector<RecordPtr> Unfinished() const;
  /// The job as users see it: the record with what is known live.
  v1::Job View(const v1::JobRecord& record) const;
  absl::StatusOr<std::vector<v1::Event>> Events(const std::string& id, int64_t after_sequence,
                                                size_t limit) const;

  /// Runs `use` under the table's lock; false when there is no such job. `use` must be short.
  bool WithLive(const std::string& id, const std::function<void(Live&)>& use);
  bool ReadLive(const std::string& id, const std::function<void(const Live&)>& use) const;
  void Notify(const std::string& id) const;

  Instant Now() const { return clock_->Now(); }

 private:
  struct Entry {
    RecordPtr record;
    Live live;
  };
  JobTable(kv::KeyValueStore* store, const Clock* clock) : store_(store), clock_(clock) {}
  absl::Status Load();
  absl::Status Persist(const Change& change, const v1::ClientKeyRecord* key,
                       const std::string& client_key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mutex_);
  RecordPtr Show(Change change);

  kv::KeyValueStore* const store_;
  const Clock* const clock_;
  std::function<void(const std::string&)> listener_;

  absl::Mutex commit_mutex_;  // one decision at a time; held during the write
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(commit_mutex_);
  std::map<std::string, Entry> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, std::string> order_ ABSL_GUARDED_BY(mutex_);       // queue number -> id
  std::map<int64_t, std::string> unfinished_ ABSL_GUARDED_BY(mutex_);  // same, not terminal
};

}  // namespace ela::coordinator
