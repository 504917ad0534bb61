// What the ranks of local_communicator.h share: mailboxes, and the first fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace ela::trainer {

class LocalWorld {
 public:
  /// Messages of one group from one rank to another arrive in the order they were sent.
  struct Channel {
    int group, from, to;  // ranks of the world
    bool operator<(const Channel& other) const {
      return std::tie(group, from, to) < std::tie(other.group, other.from, other.to);
    }
  };
  /// A message that a rank will receive: the index-th of its channel.
  struct Receipt {
    Channel channel;
    int64_t index;
    void* recv;
    size_t bytes;
  };

  explicit LocalWorld(int ranks);

  /// The calling thread is rank `rank`'s. Ranks that only ever call from their own thread are
  /// watched for waiting in a circle.
  void Begin(int rank);
  /// Rank `rank` is done: no message comes from it any more. The first error is the fault.
  void End(int rank, const absl::Status& status);
  /// Ends all pending and later calls with `status`, unless something else already did.
  void Fail(int rank, const absl::Status& status);
  /// The first fault, "rank 2: ..."; OK if there was none, and every message was received.
  absl::Status Result();
  absl::Status fault();

  absl::Status Send(const Channel& channel, const char* op, const void* data, size_t bytes);
  Receipt Expect(const Channel& channel, void* recv, size_t bytes);
  /// Waits for the message; it must be of the same op and size. `axis` is for the error.
  absl::Status Receive(const Receipt& receipt, const char* op, const std::string& axis);

  /// The same number for all members of one group: those that split `parent` as its `split`-th
  /// split with the same color.
  int GroupOf(int parent, int split, int color);

 private:
  struct Message {
    const char* op;
    std::vector<char> bytes;
  };
  struct Mailbox {
    int64_t sent = 0, expected = 0;
    std::map<int64_t, Message> messages;  // by index
    bool Has(int64_t index) const { return messages.count(index) != 0; }
  };
  struct Rank {
    std::thread::id thread;
    bool ended = false;
    std::optional<Receipt> waits_for;
  };

  void FailLocked(int rank, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  /// Every rank that has not ended waits, and none for a message that is there.
  bool Stuck() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Await(const Receipt& receipt, const std::string& call, Message* message);

  absl::Mutex mutex_;
  absl::CondVar changed_;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
  std::map<Channel, Mailbox> mailboxes_ ABSL_GUARDED_BY(mutex_);
  std::vector<Rank> ranks_ ABSL_GUARDED_BY(mutex_);
  std::map<std::tuple<int, int, int>, int> groups_ ABSL_GUARDED_BY(mutex_);
  bool own_threads_ ABSL_GUARDED_BY(mutex_) = true;  // no rank has called from another thread
};

}  // namespace ela::trainer
