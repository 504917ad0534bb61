// Counting for the back ends of Communicator.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#include "trainer/parallel/communicator.h"

namespace ela::trainer {

/// The names of the ops: `op` of CommStatistics, and what errors call them.
inline constexpr char kAllGather[] = "all_gather";
inline constexpr char kAllToAll[] = "all_to_all";
inline constexpr char kSendRecv[] = "send_recv";
inline constexpr char kBroadcast[] = "broadcast";
inline constexpr char kBarrier[] = "barrier";

/// Adds a call, its bytes and the seconds of its own scope to (op, axis). A Wait is no call of its
/// own: calls = 0, bytes = 0.
class CommTimer {
 public:
  CommTimer(CommStatistics* statistics, const char* op, const std::string& axis, int64_t calls,
            size_t bytes)
      : statistics_(statistics),
        op_(op),
        axis_(axis),
        calls_(calls),
        bytes_(static_cast<int64_t>(bytes)) {}
  ~CommTimer() {
    if (statistics_ == nullptr) return;
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin_;
    statistics_->Add(op_, axis_, calls_, bytes_, spent.count());
  }
  CommTimer(const CommTimer&) = delete;
  CommTimer& operator=(const CommTimer&) = delete;

 private:
  CommStatistics* statistics_;  // null: not counted
  const char* op_;
  const std::string& axis_;
  int64_t calls_, bytes_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace ela::trainer
