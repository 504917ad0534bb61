// However a run ends by a decision that its ranks share, none leaves with a gather under way that
// others may still take part in.
#include <gtest/gtest.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"
#include "tests/trainer/loop/trainer_run.h"

namespace ela::trainer {
namespace {

/// A gather that is under way until somebody waits.
class CountedPending : public Pending {
 public:
  CountedPending(std::unique_ptr<Pending> inner, int* under_way)
      : inner_(std::move(inner)), under_way_(under_way) {
    ++*under_way_;
  }
  absl::Status Wait() override {
    --*under_way_;
    return inner_->Wait();
  }

 private:
  std::unique_ptr<Pending> inner_;
  int* under_way_;
};

/// A communicator that counts gathers under way, those of its groups too.
class CountingCommunicator : public Communicator {
 public:
  CountingCommunicator(Communicator* inner, int* under_way)
      : inner_(inner), under_way_(under_way) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& axis() const override { return inner_->axis(); }
  CommStatistics* statistics() const override { return inner_->statistics(); }
  absl::StatusOr<std::unique_ptr<Pending>> AllGatherStart(void* recv, const void* send,
                                                          size_t bytes) override {
    ELA_ASSIGN_OR_RETURN(auto pending, inner_->AllGatherStart(recv, send, bytes));
    return std::make_unique<CountedPending>(std::move(pending), under_way_);
  }
  absl::StatusOr<std::unique_ptr<Pending>> AllToAllVStart(
      void* recv, const std::vector<size_t>& recv_bytes, const void* send,
      const std::vector<size_t>& send_bytes) override {
    return inner_->AllToAllVStart(recv, recv_bytes, send, send_bytes);
  }
  absl::StatusOr<std::unique_ptr<Pending>> SendRecvStart(void* recv, size_t recv_bytes, int from,
                                                         const void* send, size_t send_bytes,
                                                         int to) override {
    return inner_->SendRecvStart(recv, recv_bytes, from, send, send_bytes, to);
  }
  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    return inner_->Broadcast(data, bytes, root);
  }
  absl::Status Barrier() override { return inner_->Barrier(); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, const std::string& axis) override {
    ELA_ASSIGN_OR_RETURN(groups_.emplace_back(), inner_->Split(color, axis));
    return std::make_unique<CountingCommunicator>(groups_.back().get(), under_way_);
  }
  void Abort(int exit_code) override { inner_->Abort(exit_code); }

 private:
  Communicator* inner_;
  int* under_way_;
  std::vector<std::unique_ptr<Communicator>> groups_;
};

class Leaving : public TrainerRun {
 protected:
  /// Ends with `code` on both ranks, and with no gather under way.
  void ExpectNothingUnderWay(const std::vector<std::string>& sets, int code) {
    SetJob(sets);
    const absl::Status status = RunLocalRanks(2, [&](Communicator& world) -> absl::Status {
      int under_way = 0;
      CountingCommunicator counting(&world, &under_way);
      Trainer trainer(job_, Options(), &counting);
      EXPECT_EQ(trainer.Run().code, code);
      EXPECT_EQ(under_way, 0);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }

  /// A newer attempt comes in the third step.
  void SupersedeInTheThirdStep() {
    at_step_ = [path = folder_.path("run/checkpoints"),
                calls = std::make_shared<std::atomic<int>>()] {
      if (++*calls == 5) EXPECT_TRUE(checkpoints::Catalog::OpenForWriting(path, 0).ok());
      return false;
    };
  }
};

TEST_F(Leaving, AtTheEnd) { ExpectNothingUnderWay({"parallelism.data=2"}, kExitDone); }

TEST_F(Leaving, OnRequest) {
  at_step_ = [] { return true; };
  ExpectNothingUnderWay({"parallelism.data=2"}, kExitStopped);
}

TEST_F(Leaving, WhenANewerAttemptHasCome) {
  for (const char* every : {"checkpoint.every_steps=1", "checkpoint.every_steps=5"}) {
    for (const char* async : {"checkpoint.async=true", "checkpoint.async=false"}) {
      SCOPED_TRACE(absl::StrCat(every, " ", async));
      std::filesystem::remove_all(folder_.path("run"));
      SupersedeInTheThirdStep();
      ExpectNothingUnderWay({"parallelism.data=2", every, async}, kExitSuperseded);
    }
  }
}

}  // namespace
}  // namespace ela::trainer
