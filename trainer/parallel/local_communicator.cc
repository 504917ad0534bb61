#include "trainer/parallel/local_communicator.h"

#include <cstring>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "proto/status_macros.h"
#include "trainer/parallel/comm_timer.h"
#include "trainer/parallel/local_world.h"

namespace ela::trainer {
namespace {

using Statistics = std::shared_ptr<CommStatistics>;

char* At(void* data, size_t offset) { return static_cast<char*>(data) + offset; }
const char* At(const void* data, size_t offset) { return static_cast<const char*>(data) + offset; }

void CopyOwn(void* to, const void* from, size_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}

/// Sends are buffered: what is pending is what is still to be received.
class LocalPending : public Pending {
 public:
  LocalPending(std::shared_ptr<LocalWorld> world, Statistics statistics, const char* op,
               std::string axis)
      : world_(std::move(world)),
        statistics_(std::move(statistics)),
        op_(op),
        axis_(std::move(axis)) {}
  ~LocalPending() override { Wait().IgnoreError(); }

  void Expect(const LocalWorld::Channel& channel, void* recv, size_t bytes) {
    receipts_.push_back(world_->Expect(channel, recv, bytes));
  }
  absl::Status Wait() override {
    if (waited_) return status_;
    waited_ = true;
    const CommTimer timer(statistics_.get(), op_, axis_, 0, 0);
    for (const LocalWorld::Receipt& receipt : receipts_) {
      if (status_.ok()) status_ = world_->Receive(receipt, op_, axis_);
    }
    return status_;
  }

 private:
  std::shared_ptr<LocalWorld> world_;
  Statistics statistics_;
  const char* op_;
  std::string axis_;
  std::vector<LocalWorld::Receipt> receipts_;
  bool waited_ = false;
  absl::Status status_;
};

class LocalCommunicator : public Communicator {
 public:
  /// `members`: the ranks of the world that form the group, ascending by rank here.
  LocalCommunicator(std::shared_ptr<LocalWorld> world, int group, std::vector<int> members,
                    int rank, std::string axis, Statistics statistics)
      : world_(std::move(world)),
        group_(group),
        members_(std::move(members)),
        rank_(rank),
        axis_(std::move(axis)),
        statistics_(std::move(statistics)) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  const std::string& axis() const override { return axis_; }
  CommStatistics* statistics() const override { return statistics_.get(); }

  absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send,
                                                          size_t bytes) override {
    const CommTimer timer(statistics_.get(), kAllGather, axis_, 1, OthersTimes(bytes));
    auto pending = NewPending(kAllGather);
    for (int p = 0; p < size(); ++p) {
      if (p == rank_) continue;
      ELA_RETURN_IF_ERROR(world_->Send(To(p), kAllGather, send, bytes));
      pending->Expect(From(p), At(recv, static_cast<size_t>(p) * bytes), bytes);
    }
    CopyOwn(At(recv, static_cast<size_t>(rank_) * bytes), send, bytes);
    ELA_RETURN_IF_ERROR(world_->fault());
    return pending;
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllToAllVStart(
      void* recv, const std::vector<size_t>& recv_bytes, const void* send,
      const std::vector<size_t>& send_bytes) override {
    const size_t ranks = members_.size(), me = static_cast<size_t>(rank_);
    ELA_CHECK(recv_bytes.size() == ranks && send_bytes.size() == ranks &&
                  recv_bytes[me] == send_bytes[me],
              "%zu ranks", ranks);
    const size_t total = std::accumulate(recv_bytes.begin(), recv_bytes.end(), size_t{0});
    const CommTimer timer(statistics_.get(), kAllToAll, axis_, 1, total - recv_bytes[me]);
    auto pending = NewPending(kAllToAll);
    size_t sent = 0, received = 0;
    for (int p = 0; p < size(); ++p) {
      const size_t to = send_bytes[static_cast<size_t>(p)];
      const size_t from = recv_bytes[static_cast<size_t>(p)];
      if (p == rank_) {
        CopyOwn(At(recv, received), At(send, sent), from);
      } else {
        ELA_RETURN_IF_ERROR(world_->Send(To(p), kAllToAll, At(send, sent), to));
        pending->Expect(From(p), At(recv, received), from);
      }
      sent += to;
      received += from;
    }
    ELA_RETURN_IF_ERROR(world_->fault());
    return pending;
  }

  absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes, int from,
                                                         const void* send, size_t send_bytes,
                                                         int to) override {
    const CommTimer timer(statistics_.get(), kSendRecv, axis_, 1, from == rank_ ? 0 : recv_bytes);
    auto pending = NewPending(kSendRecv);
    ELA_RETURN_IF_ERROR(world_->Send(To(to), kSendRecv, send, send_bytes));
    pending->Expect(From(from), recv, recv_bytes);
    return pending;
  }

  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    const CommTimer timer(statistics_.get(), kBroadcast, axis_, 1, rank_ == root ? 0 : bytes);
    LocalPending pending(world_, nullptr, kBroadcast, axis_);
    if (rank_ != root) pending.Expect(From(root), data, bytes);
    for (int p = 0; rank_ == root && p < size(); ++p) {
      if (p != root) ELA_RETURN_IF_ERROR(world_->Send(To(p), kBroadcast, data, bytes));
    }
    ELA_RETURN_IF_ERROR(world_->fault());
    return pending.Wait();
  }

  absl::Status Barrier() override {
    const CommTimer timer(statistics_.get(), kBarrier, axis_, 1, 0);
    LocalPending pending(world_, nullptr, kBarrier, axis_);
    for (int p = 0; p < size(); ++p) {
      if (p == rank_) continue;
      ELA_RETURN_IF_ERROR(world_->Send(To(p), kBarrier, nullptr, 0));
      pending.Expect(From(p), nullptr, 0);
    }
    ELA_RETURN_IF_ERROR(world_->fault());
    return pending.Wait();
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, const std::string& axis) override {
    std::vector<int> colors(members_.size()), members;
    ELA_RETURN_IF_ERROR(AllGather(colors.data(), &color, sizeof color));
    int rank = 0;
    for (size_t p = 0; p < colors.size(); ++p) {
      if (colors[p] != color) continue;
      if (static_cast<int>(p) == rank_) rank = static_cast<int>(members.size());
      members.push_back(members_[p]);
    }
    const int group = world_->GroupOf(group_, splits_++, color);
    return std::make_unique<LocalCommunicator>(world_, group, std::move(members), rank, axis,
                                               statistics_);
  }

  void Abort(int exit_code) override {
    world_->Fail(WorldRank(rank_),
                 absl::AbortedError(absl::StrCat("aborted the run with exit code ", exit_code)));
  }

 private:
  int WorldRank(int p) const {
    ELA_CHECK(p >= 0 && p < size(), "rank %d of %d", p, size());
    return members_[static_cast<size_t>(p)];
  }
  LocalWorld::Channel To(int p) const { return {group_, WorldRank(rank_), WorldRank(p)}; }
  LocalWorld::Channel From(int p) const { return {group_, WorldRank(p), WorldRank(rank_)}; }
  size_t OthersTimes(size_t bytes) const { return (members_.size() - 1) * bytes; }
  std::unique_ptr<LocalPending> NewPending(const char* op) const {
    return std::make_unique<LocalPending>(world_, statistics_, op, axis_);
  }

  std::shared_ptr<LocalWorld> world_;
  int group_;
  std::vector<int> members_;
  int rank_;
  std::string axis_;
  Statistics statistics_;
  int splits_ = 0;
};

}  // namespace

absl::Status RunLocalRanks(int ranks,
                           const std::function<absl::Status(Communicator& world)>& rank_main) {
  const auto shared = std::make_shared<LocalWorld>(ranks);
  std::vector<int> members(static_cast<size_t>(ranks));
  std::iota(members.begin(), members.end(), 0);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      shared->Begin(rank);
      LocalCommunicator world(shared, 0, members, rank, "world",
                              std::make_shared<CommStatistics>());
      shared->End(rank, rank_main(world));
    });
  }
  for (std::thread& thread : threads) thread.join();
  return shared->Result();
}

std::unique_ptr<Communicator> MakeSingleRank(const CommunicatorOptions& options) {
  return std::make_unique<LocalCommunicator>(std::make_shared<LocalWorld>(1), 0,
                                             std::vector<int>{0}, 0, "world", options.statistics);
}

}  // namespace ela::trainer
